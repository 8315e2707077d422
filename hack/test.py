"""Every test, part by part: `make test`.

    python hack/test.py [PYTEST'S ARGUMENTS …]      -k, -x, --durations=20, … go to each part

Parts that mostly wait, for a server or a clock, run beside each other, cut so that none is much longer than the others;
those with real engines, which take every core and time what they do, have the machine to themselves. Each line says
whose it is. A part that fails stops no other. The
closing line, the last, is the sum of theirs. To run one folder or one file, call pytest itself.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("tests/e2e/vllm", "tests/e2e/worker")
FAULTS = "tests/controlplane/faults"
CRASHES = (f"{FAULTS}/test_crash_points.py", f"{FAULTS}/test_machine.py")
API_SERVER = ("hack/cluster/build.py",)
NOTHING_COLLECTED = 5
STOP_SECONDS = 120.0
# As pytest orders its closing line; what is not named goes last.
ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "errors")
CLOSING = re.compile(r"^=+ (?P<counts>.*) in [0-9.]+s( \([0-9:, days]+\))? =+$")
COUNT = re.compile(r"(\d+) (\w+)")


@dataclass(frozen=True, slots=True)
class Part:
    """One run of pytest; `needs` are programs that build what it takes, and do nothing where that is there."""

    name: str
    tests: tuple[str, ...]
    needs: tuple[str, ...] = ()


def without(paths: Iterable[str]) -> Iterable[str]:
    return (f"--ignore={path}" for path in paths)


STAGES = (
    (
        # Whatever comes into a folder is run here, unless another part names it.
        Part("others", ("tests/unit", "tests/contract", "tests/e2e", *without(ENGINES))),
        Part("controlplane", ("tests/controlplane", *without((FAULTS,))), needs=API_SERVER),
        Part("faults", (FAULTS, *without(CRASHES)), needs=API_SERVER),
        Part("crashes", CRASHES, needs=API_SERVER),
    ),
    (Part("engines", ENGINES),),
)


# What several parts need is built by the first; the others find it there.
_building = threading.Lock()


@dataclass(slots=True)
class Run:
    """A part while it runs, and what came of it. `counts` is None where pytest did not come to its end."""

    part: Part
    status: int = 1
    counts: Counter[str] | None = None
    process: subprocess.Popen[str] | None = None
    told_to_end: threading.Event = field(default_factory=threading.Event)

    def __call__(self, arguments: Sequence[str]) -> None:
        for program in self.part.needs:
            with _building:
                self.status = 1 if self.told_to_end.is_set() else self._follow([sys.executable, program])
            if self.status or self.told_to_end.is_set():
                say(self.part.name, f"{program} ended with {self.status}: these tests were not run")
                return
        cache = f"cache_dir=.pytest_cache/{self.part.name}"
        self.status = self._follow([sys.executable, "-u", "-m", "pytest", "-o", cache, *self.part.tests, *arguments])

    def _follow(self, command: Sequence[str]) -> int:
        """Its exit status; what it says is passed on, a line at a time."""
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as self.process:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                say(self.part.name, line.rstrip("\n"))
                if (found := counted(line)) is not None:
                    self.counts = found
        return self.process.returncode

    def end(self, signum: int) -> None:
        self.told_to_end.set()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)


def say(name: str, line: str) -> None:
    print(f"{name:<12} | {line}", flush=True)


def counted(line: str) -> Counter[str] | None:
    """What pytest's closing line counts, in the plural; None for any other line."""
    found = CLOSING.match(line.rstrip())
    if found is None:
        return None
    plural = {"error": "errors", "warning": "warnings"}
    return Counter({plural.get(what, what): int(count) for count, what in COUNT.findall(found["counts"])})


def closing(counts: Iterable[Counter[str] | None], seconds: float) -> str:
    """All parts' closing lines as one. A part without one is an error."""
    total: Counter[str] = Counter()
    for each in counts:
        total += Counter(errors=1) if each is None else each
    words = sorted(total, key=lambda what: ORDER.index(what) if what in ORDER else len(ORDER))
    said = ", ".join(f"{total[what]} {what}" for what in words) or "no tests ran"
    minutes, rest = divmod(round(seconds), 60)
    line = f" {said} in {seconds:.2f}s ({minutes // 60}:{minutes % 60:02}:{rest:02}) "
    return line.center(80, "=")


def status_of(statuses: Sequence[int]) -> int:
    """A part in which an argument such as -k leaves nothing has not failed, unless that is so in all of them."""
    failed = [status for status in statuses if status not in (0, NOTHING_COLLECTED)]
    if failed:
        return max(failed)
    return 0 if 0 in statuses else NOTHING_COLLECTED


def main(arguments: Sequence[str]) -> int:
    began = time.monotonic()
    runs: list[Run] = []
    ended = threading.Event()

    def told_to_end(signum: int, _: FrameType | None) -> None:
        ended.set()
        for run in runs:
            # Ctrl-C reaches the parts by itself: they are of this process's group.
            if signum == signal.SIGTERM:
                run.end(signum)

    signal.signal(signal.SIGTERM, told_to_end)
    signal.signal(signal.SIGINT, told_to_end)
    for stage in STAGES:
        if ended.is_set():
            break
        beside = [Run(part) for part in stage]
        runs += beside
        threads = [threading.Thread(target=run, args=(arguments,), daemon=True) for run in beside]
        for thread in threads:
            thread.start()
        for thread in threads:
            wait_for(thread, ended)
    for run in runs:
        run.end(signal.SIGKILL)
    print(closing((run.counts for run in runs), time.monotonic() - began), flush=True)
    return 2 if ended.is_set() else status_of([run.status for run in runs])


def wait_for(thread: threading.Thread, ended: threading.Event) -> None:
    """To its end; once we were told to end, not longer than fixtures need to give back what they hold."""
    while thread.is_alive() and not ended.is_set():
        thread.join(0.5)
    thread.join(STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
