"""Requests to the API server: one session, typed outcomes, a bound on each, and writes that respect the fence.

A write is sent only while the fence is up. That is looked at when its connection is in hand, after any wait for one,
and the write ends with the fence, which stays up while the Lease is renewed: one that a stopped process had prepared
never leaves it later, and one that takes long has REQUEST_SECONDS like any other request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import kopf

from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.login import Login
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Unauthorized, Unreachable, of_status
from streamserve.operator.naming import FIELD_MANAGER
from streamserve.runtime.errors import SetupError

REQUEST_SECONDS: Final = 15.0
CONNECT_SECONDS: Final = 5.0
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class _Call:
    """One request. `fence` is looked at once more when its connection is in hand; None for what may always go."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    content: str = _JSON
    query: Mapping[str, str] = field(default_factory=dict)
    fence: Fence | None = None


class Api:
    """One API server. `open` before the first request, `close` after the last."""

    def __init__(self, login: Login, fence: Fence, metrics: OperatorMetrics) -> None:
        self._login = login
        self._fence = fence
        self._metrics = metrics
        self._info: kopf.ConnectionInfo | None = None
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Raises SetupError where there are no credentials."""
        info = self._login()
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(self._on_connection)
        trace.on_connection_create_end.append(self._on_connection)
        self._info = info
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers={**info.as_http_headers(), "User-Agent": FIELD_MANAGER},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS),
            proxy=info.proxy_url,
            trace_configs=[trace],
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def refresh(self) -> None:
        """Take a token that was replaced. Keeps the old one where the new cannot be read."""
        try:
            fresh = self._login()
        except SetupError:
            return
        if self._session is not None:
            self._session.headers.update(fresh.as_http_headers())

    async def get(self, path: str) -> dict[str, Any]:
        """Raises ApiError."""
        return await self._request(_Call("GET", path))

    async def apply(
        self, path: str, manifest: Mapping[str, Any], *, manager: str = FIELD_MANAGER, force: bool = True
    ) -> dict[str, Any]:
        """Server-side apply. Raises ApiError, NotLeader."""
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._request(_Call("PATCH", path, manifest, APPLY, query, self._fence))

    async def rehearse(self, path: str, manifest: Mapping[str, Any]) -> None:
        """Whether the server would take this object; nothing is written. Raises ApiError, NotLeader."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "dryRun": "All"}
        await self._request(_Call("PATCH", path, manifest, APPLY, query, self._fence))

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        *,
        content: str = _JSON,
        manager: str = FIELD_MANAGER,
        unfenced: bool = False,
    ) -> dict[str, Any]:
        """Any other write. `unfenced` is for the Lease itself alone. Raises ApiError, NotLeader."""
        query = {} if method == "DELETE" else {"fieldManager": manager}
        return await self._request(_Call(method, path, body, content, query, None if unfenced else self._fence))

    async def _on_connection(self, session: object, context: SimpleNamespace, parameters: object) -> None:
        call: _Call = context.trace_request_ctx
        if call.fence is not None:
            call.fence.check()

    async def _request(self, call: _Call) -> dict[str, Any]:
        outcome = "ok"
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                contextlib.nullcontext() if call.fence is None else call.fence.while_up(),
            ):
                return await self._exchange(call)
        except ApiError as error:
            outcome = type(error).__name__
            if isinstance(error, Unauthorized):
                self.refresh()
            raise
        except NotLeader:
            outcome = "NotLeader"
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome = "Unreachable"
            raise Unreachable(f"{call.method} {call.path}: {error or 'no answer in time'}") from error
        finally:
            self._metrics.request(call.method, outcome)

    async def _exchange(self, call: _Call) -> dict[str, Any]:
        if self._session is None or self._info is None:
            raise RuntimeError("the client is not open")
        async with self._session.request(
            call.method,
            self._info.server.rstrip("/") + call.path,
            data=None if call.body is None else json.dumps(call.body).encode(),
            params=call.query,
            headers={"Content-Type": call.content, "Accept": _JSON},
            trace_request_ctx=call,
        ) as response:
            text = await response.read()
            try:
                answer = json.loads(text)
            except ValueError:
                answer = text.decode(errors="replace")[:1_000]
            if response.status >= 400:
                raise of_status(response.status, answer, response.headers.get("Retry-After", ""))
            if not isinstance(answer, dict):
                raise Unreachable(f"{call.method} {call.path}: the answer is no JSON object", status=response.status)
            return answer
