"""Changing how a running router decides."""

from __future__ import annotations

from tests.support import calls
from tests.support.processes import LocalFleet, wait_until

from streamserve.contract.runtime_config import RoutingConfig, RoutingPolicy

# What any hot setting may take at most.
HOT_SECONDS = 2.0


def route_by(fleet: LocalFleet, policy: RoutingPolicy) -> None:
    """From the return on the router decides by `policy`, and says so itself."""
    fleet.configure(routing=RoutingConfig(policy=policy))
    wait_until(
        lambda: calls.explain(fleet.grpc, calls.request("x")).policy == policy.value,
        seconds=HOT_SECONDS,
        what=f"the router decides by {policy.value}",
    )
