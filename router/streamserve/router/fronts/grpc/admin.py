"""AdminService: what the router sees, how it would decide, and which configuration is in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from streamserve.contract.errors import StreamServeError
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.router.flowguard.explain import explained
from streamserve.router.fronts.checks import Checks
from streamserve.router.scheduler.orchestrator import Orchestrator
from streamserve.runtime import status
from streamserve.v1 import admin_pb2, admin_pb2_grpc

SERVICE: Final = "streamserve.v1.AdminService"


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    def __init__(
        self,
        orchestrator: Orchestrator,
        checks: Checks,
        *,
        config: Callable[[], RuntimeConfig],
        config_error: Callable[[], str],
    ) -> None:
        self._orchestrator = orchestrator
        self._checks = checks
        self._config = config
        self._config_error = config_error

    async def GetFleet(self, request: admin_pb2.GetFleetRequest, context: Any) -> admin_pb2.GetFleetResponse:
        response = self._orchestrator.fleet.snapshot()
        queued = self._orchestrator.dispatcher.queue.requests
        response.queued_requests = queued
        response.running_requests = max(0, self._orchestrator.running - queued)
        return response

    async def ExplainRoute(
        self, request: admin_pb2.ExplainRouteRequest, context: Any
    ) -> admin_pb2.ExplainRouteResponse:
        outcome: Decision | NoLane
        try:
            checked = self._checks.checked(request.request, request_id="explain", remaining_seconds=None)
            outcome = self._orchestrator.dispatcher.decide(checked)
        except NoLane as error:
            outcome = error
        except StreamServeError as error:
            await status.abort(context, error)
        return explained(outcome)

    async def GetConfig(self, request: admin_pb2.GetConfigRequest, context: Any) -> admin_pb2.GetConfigResponse:
        config = self._config()
        return admin_pb2.GetConfigResponse(
            pair_uid=config.id.uid,
            generation=config.id.generation,
            step=config.id.step,
            config_json=config.model_dump_json(),
            last_error=self._config_error(),
        )
