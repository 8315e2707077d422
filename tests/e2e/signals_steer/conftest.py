"""Two lanes of simulated workers, alike in everything, on which a test may put load or faults one by one.

The simulator runs four times slower than its calibration (a step of about 33 ms): enough requests to tell a share from
chance, few enough messages for a small machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.processes import LocalFleet, default_config
from tests.support.steady_load import exercise

from streamserve.contract.runtime_config import (
    DepthPolicyName,
    RoutingPolicy,
    RuntimeConfig,
    SpeculationConfig,
)

from .switch import route_by

SLOWDOWN = 4.0
DEPTH = 4


def configuration() -> RuntimeConfig:
    """Fixed depth: what a lane is worth then changes with its acceptance and its load, and with nothing else."""
    speculation = SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=DEPTH, fixed_depth=DEPTH)
    return default_config("pair-uid-1").model_copy(update={"speculation": speculation})


@pytest.fixture(scope="package")
def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    arguments = {"simulator-slowdown": str(SLOWDOWN), "simulator-acceptance": "[1.0]"}
    with LocalFleet(
        tmp_path_factory.mktemp("steer"),
        config=configuration(),
        engine_arguments=arguments,
        simulator_control=True,
    ) as running:
        yield running


@pytest.fixture
def fleet(running_fleet: LocalFleet) -> Iterator[LocalFleet]:
    """Each test finds it as the first one did: FlowGuard, no faults, and rates that show none."""
    yield running_fleet
    route_by(running_fleet, RoutingPolicy.FLOW_GUARD)
    faulty = [worker for worker in running_fleet.workers if running_fleet.faults(worker.name)]
    for worker in faulty:
        running_fleet.fault(worker.name)
        exercise(worker, max_tokens=300)
