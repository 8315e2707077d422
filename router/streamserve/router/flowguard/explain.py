"""A decision as `ExplainRoute` shows it: every candidate, term by term, with the inputs that it stands on."""

from __future__ import annotations

from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.v1 import admin_pb2


def explained(outcome: Decision | NoLane) -> admin_pb2.ExplainRouteResponse:
    """The answer of ExplainRoute for a pick that was made, or that could not be."""
    if isinstance(outcome, NoLane):
        return admin_pb2.ExplainRouteResponse()
    return admin_pb2.ExplainRouteResponse(chosen=outcome.lane, policy=outcome.policy)
