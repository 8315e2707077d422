"""Which workers serve this request: the pair with the least expected cost, in seconds."""

from __future__ import annotations

from random import Random

from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView


class Cursor:
    """Where RoundRobin stands; one for each router, owned by the caller."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = 0


def pick(
    request: RouteRequest, view: FleetView, config: RuntimeConfig, rng: Random, cursor: Cursor | None = None
) -> Decision:
    """The workers to use, and why the others were not.

    Raises NoLane when every lane is filtered out; its `refused` says which filter took which lane.
    """
    raise NoLane(())
