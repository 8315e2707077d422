"""Lets calls with a known bearer token in, and the health check: for the port that asks for no certificate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from streamserve.contract.errors import Unauthenticated
from streamserve.router.fronts.tokens import HEADER, Tokens
from streamserve.runtime import status

_OPEN: Final = "/grpc.health.v1.Health/"
if TYPE_CHECKING:  # only the stubs know it as generic
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Handler = grpc.RpcMethodHandler


class TokenGate(grpc.aio.ServerInterceptor):
    """`refused` is told of each call that is turned away."""

    def __init__(self, tokens: Tokens, *, refused: Callable[[], None]) -> None:
        self._tokens = tokens
        self._refused = refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        try:
            self._tokens.client(_header(handler_call_details))
        except Unauthenticated as error:
            self._refused()
            return _refusal(error)
        return handler


def _header(details: grpc.HandlerCallDetails) -> str | None:
    for key, value in details.invocation_metadata or ():
        if key == HEADER:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def _refusal(error: Unauthenticated) -> _Handler:
    """As a stream in both directions, whatever was called: so nothing of the request is waited for or read."""

    async def refuse(requests: Any, context: Any) -> None:
        await status.abort(context, error)

    handler: Callable[..., _Handler] = grpc.stream_stream_rpc_method_handler
    return handler(refuse)
