"""The worker with the real engine, small enough for `make test-vllm-0.26` too: one lane of two engines for all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from real_lane import RealLane


@pytest.fixture(scope="module")
def real_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLane]:
    lane = RealLane(tmp_path_factory.mktemp("lane"))
    try:
        yield lane.start()
    finally:
        lane.stop()
