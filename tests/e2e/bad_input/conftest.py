"""One lane of simulated workers behind a router that gives slow readers up early."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.processes import LocalFleet


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with LocalFleet(
        tmp_path_factory.mktemp("bad-input"),
        lanes=1,
        engine_arguments={"max-model-len": "2048"},
        router_arguments=("--slow-consumer-seconds", "1"),
    ) as running:
        yield running
