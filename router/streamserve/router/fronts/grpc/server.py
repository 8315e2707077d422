"""InferenceService: Generate with raw bytes in both directions.

grpc.aio's own (de)serializers are left out: a request that cannot be read is INVALID_ARGUMENT instead of INTERNAL, and
answers are forwarded as the bytes that the worker sent. A client that stops reading blocks its own write only, for as
long as the orchestrator permits. A client that leaves cancels the handler's task, which ends the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import grpc

from streamserve.contract.errors import InternalError, NotReady, StreamServeError
from streamserve.router.fronts.checks import Checks
from streamserve.router.scheduler.orchestrator import ClientLeft, Orchestrator, Write
from streamserve.runtime import logs, status

SERVICE: Final = "streamserve.v1.InferenceService"
_ABORT_SECONDS: Final = 5.0
_log = logs.get(__name__)


class InferenceServicer:
    """`accepting` is false while the router drains: new requests are refused, running ones go on."""

    def __init__(self, orchestrator: Orchestrator, checks: Checks, accepting: Callable[[], bool]) -> None:
        self._orchestrator = orchestrator
        self._checks = checks
        self._accepting = accepting

    def add_to(self, server: grpc.aio.Server) -> None:
        handler: Any = grpc.unary_stream_rpc_method_handler(self.generate)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Generate": handler}),))

    async def generate(self, data: bytes, context: Any) -> None:
        try:
            with self._orchestrator.metrics.refusals():
                if not self._accepting():
                    raise NotReady("the router is stopping: send the request to another one")
                request_id = status.request_id_of(context)
                # For what is logged here, around the orchestrator; the call's context goes with it.
                logs.request_id.set(request_id)
                message = self._checks.parsed(data)
                request = self._checks.checked(
                    message, request_id=request_id, remaining_seconds=status.remaining_seconds(context)
                )
            await self._orchestrator.serve(request, _writer(context, request_id))
        except ClientLeft as error:
            # Nobody hears an answer.
            _log.info("%s", error.message)
        except StreamServeError as error:
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            _log.exception("Generate failed")
            await _abort(context, InternalError("the router failed; report this with its log"))


def _writer(context: Any, request_id: str) -> Write:
    """Sends the headers with the first chunk, not before: a client may then still retry what fails earlier."""
    opened = False

    async def write(data: bytes) -> None:
        nonlocal opened
        try:
            if not opened:
                opened = True
                await context.send_initial_metadata(((status.REQUEST_ID_METADATA, request_id),))
            await context.write(data)
        except grpc.aio.BaseError as error:
            # A call that has ended is UsageError, one that ends in this moment InternalError.
            raise ClientLeft(f"the client left: {error}") from error

    return write


async def _abort(context: Any, error: StreamServeError) -> None:
    """End the call. A client that does not read could hold even its own error, so that waits only a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ABORT_SECONDS):
            await status.abort(context, error)
