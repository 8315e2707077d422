"""The worker with the real engine, small enough for `make test-vllm-0.26` too: one lane of two engines for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_lane import RealLane


@pytest.fixture(scope="module")
def real_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLane]:
    lane = RealLane(tmp_path_factory.mktemp("lane"))
    try:
        yield lane.start()
    finally:
        lane.stop()
