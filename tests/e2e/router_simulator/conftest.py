"""One fleet of simulated workers for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.processes import LocalFleet


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    arguments = ("--slow-consumer-seconds", "1.5", "--stall-seconds", "2")
    with LocalFleet(tmp_path_factory.mktemp("fleet"), router_arguments=arguments) as running:
        yield running
