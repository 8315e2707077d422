"""Real vLLM engines through the whole path. Engines take half a minute to load, so all tests share what they can.

Order, whatever was selected: the reference by plain vLLM, alone; then every test of the shared fleet of two lanes, the
destructive ones last; then the lane with planted faults, once the shared fleet is gone. Never more than four engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_reference import Reference, compute
from real_fleet import Fleets, RealFleet

HERE = Path(__file__).resolve().parent
ORDER = (
    "test_same_text",
    "test_same_distribution",
    "test_kv_moves",
    "test_signals",
    "test_front_doors",
    "test_hot_config",
    "test_idle",
    "test_leaks",
    "test_death",
    "test_faults",
)
FLEETS = pytest.StashKey[Fleets]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [index for index, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[index] for index in ours), key=lambda item: ORDER.index(item.path.stem))
    for index, item in zip(ours, ordered, strict=True):
        items[index] = item


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return compute(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def fleets(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Fleets]:
    fleets = pytestconfig.stash[FLEETS] = Fleets(tmp_path_factory.mktemp("fleet"))
    yield fleets
    fleets.close()


@pytest.fixture
def fleet(reference: Reference, fleets: Fleets) -> RealFleet:
    """Two lanes that serve, shared by the tests; the reference was computed before they started."""
    return fleets.get()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The fleet goes with the last test of this folder: others follow, with engines of their own."""
    if nextitem is None or nextitem.path.parent != HERE:
        fleets = item.config.stash.get(FLEETS, None)
        if fleets is not None:
            fleets.close()
