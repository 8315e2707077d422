"""A Redis and simulator workers as real processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lane import Lane
from processes import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture
def lane(tmp_path: Path, redis_server: RedisServer) -> Iterator[Lane]:
    """One prefill and one decode worker that serve."""
    lane = Lane(tmp_path, redis_server)
    try:
        yield lane.start()
    finally:
        lane.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """A lane for the tests of a module that leave it as they found it."""
    directory = tmp_path_factory.mktemp("shared")
    server = RedisServer(directory)
    lane = Lane(directory, server)
    try:
        server.start()
        yield lane.start()
    finally:
        lane.stop()
        server.kill()
