"""A pytest plugin for tiers that take hours.

    pytest -p tests.support.slices --everything --done FILE --slice-minutes 25 …

What passed is noted in FILE, one test a line with its seconds, and is left out by the next run. No test begins after
N minutes; then the run ends with status 2 and says that there is more. The same command again goes on. The run after
which nothing is left ends with one JSON object: what bench/results keeps.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

BEGAN: pytest.StashKey[float] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("slices")
    group.addoption("--everything", action="store_true", help="also what is marked so, not the sample alone")
    group.addoption("--done", type=Path, metavar="FILE", help="leave out what passed before; note what passes")
    group.addoption("--slice-minutes", type=float, default=0.0, metavar="N", help="begin no test after N minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN] = time.monotonic()
    if (path := config.getoption("done")) is not None:
        config.pluginmanager.register(_Notes(path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("slice_minutes")
    if minutes and time.monotonic() - item.config.stash[BEGAN] > 60 * minutes:
        pytest.exit(f"{minutes:g} minutes are over: run the same command again for the rest", returncode=2)


class _Notes:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._left: set[str] = set()
        self._complete = False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = self._done()
        left_out = [item for item in items if item.nodeid in done]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in done]
        self._left = {item.nodeid for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"{report.nodeid} {report.duration:.1f}\n")
            self._left.discard(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """That nothing was left to run is what one hopes for."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not self._left and self._done():
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        self._complete = ended and not self._left and bool(self._done())

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """After pytest's own last line."""
        terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
        if self._complete and terminal is not None:
            terminal.write_line(json.dumps(summary(self._done())))

    def _done(self) -> dict[str, float]:
        """Seconds by test."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return {name: float(seconds) for name, _, seconds in (line.rpartition(" ") for line in lines)}


def summary(done: dict[str, float]) -> dict[str, Any]:
    """How many cases of each test passed, and how long they took together."""
    tests: dict[str, dict[str, float]] = {}
    for name, seconds in done.items():
        row = tests.setdefault(name.partition("[")[0], {"cases": 0, "seconds": 0.0})
        row["cases"] += 1
        row["seconds"] = round(row["seconds"] + seconds, 1)
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(described, check=False, capture_output=True, text=True, timeout=30)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release()},
        "passed": len(done),
        "tests": tests,
    }
