"""Who may use the OpenAI API: whoever shows a certificate of the authority, or a known bearer token.

The certificate has been verified by the handshake; here it only counts that there was one. ASGI's TLS extension says
so in the scope (https://asgi.readthedocs.io/en/latest/specs/tls.html).
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from streamserve.contract.errors import Unauthenticated
from streamserve.router.fronts.openai import responses
from streamserve.router.fronts.tokens import HEADER, Tokens
from streamserve.runtime.status import http_status


class OnlyKnownClients:
    """Answers 401 to everybody else, before anything of the request is read. `refused` is told of each."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens | None, refused: Callable[[], None]) -> None:
        self._app = app
        self._tokens = tokens
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} is served here")  # who could ask so was not looked at
        if not _has_certificate(scope):
            try:
                self._check(scope)
            except Unauthenticated as error:
                self._refused()
                await _refuse(send, error)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if self._tokens is None:
            raise Unauthenticated("connect with a client certificate: this router knows no tokens", reason="NO_TOKEN")
        wanted = HEADER.encode()
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), None)
        self._tokens.client(header)


def _has_certificate(scope: Scope) -> bool:
    return bool(scope.get("extensions", {}).get("tls", {}).get("client_cert_chain"))


async def _refuse(send: Send, error: Unauthenticated) -> None:
    status = http_status(error)
    body = responses.error_body(error, status)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b'Bearer realm="streamserve"'),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
