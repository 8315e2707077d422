"""A pytest plugin for tiers that take hours.

    pytest -p tests.support.slices --everything --done FILE --slice-minutes 25 …

What passed is noted in FILE, one test a line, and is left out by the next run. No test begins after N minutes; then
the run ends with status 2 and says that there is more. The same command again goes on.
"""

from __future__ import annotations

import time
from pathlib import Path

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

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = set(self._path.read_text().splitlines()) if self._path.exists() else set()
        left_out = [item for item in items if item.nodeid in done]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"{report.nodeid}\n")
