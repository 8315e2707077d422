"""/v1/models, /v1/completions and /v1/chat/completions over the same session core as gRPC.

A streamed answer's status line waits for the first chunk, so that whatever fails before it has a proper status; what
fails after it is an error event, and no [DONE]. Chunks go straight to the connection: a client that does not read
blocks the session's own write, which the orchestrator bounds, up to and with [DONE]. A client that leaves cancels the
session.

A path with a trailing slash means the one without: clients do not repeat a POST that is redirected.
Headers: x-request-id (in and out), x-request-timeout-ms (deadline), Retry-After (out, with 429 and 503).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamserve.contract.errors import InternalError, InvalidRequest, NotReady, StreamServeError
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.router.fronts.checks import Checks
from streamserve.router.fronts.openai import requests, responses
from streamserve.router.scheduler.orchestrator import Orchestrator
from streamserve.router.scheduler.request import GenerationRequest
from streamserve.runtime import logs
from streamserve.runtime.status import checked_request_id, http_status
from streamserve.v1 import inference_pb2

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
BODY_SECONDS: Final = 60.0
_LAST_WORD_SECONDS: Final = 5.0
_TIMEOUT_DIGITS: Final = 10
_log = logs.get(__name__)

Parsed = requests.CompletionRequest | requests.ChatCompletionRequest


def build(
    orchestrator: Orchestrator,
    checks: Checks,
    *,
    config: Callable[[], RuntimeConfig],
    accepting: Callable[[], bool],
    wall_clock: Callable[[], float],
) -> Starlette:
    """The application. `wall_clock` gives the `created` of answers."""
    started = int(wall_clock())

    async def models(request: Request) -> Response:
        return Response(responses.models(config().served_names, started), media_type="application/json")

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            checks.model(name)
        except StreamServeError as error:
            return Response(responses.error_body(error), http_status(error), media_type="application/json")
        row = responses.models([name], started).removeprefix(b'{"object":"list","data":[').removesuffix(b"]}")
        return Response(row, media_type="application/json")

    def endpoint(read: Callable[[bytes], Parsed], chat: bool) -> _Generation:
        return _Generation(orchestrator, checks, read, chat, accepting, wall_clock)

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", endpoint(requests.completion, False), methods=["POST"]),
            Route("/v1/chat/completions", endpoint(requests.chat_completion, True), methods=["POST"]),
        ],
        middleware=[Middleware(_WithoutSlash)],
        exception_handlers={HTTPException: _http_exception},
    )


class _WithoutSlash:
    """Serves /v1/completions/ as /v1/completions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    served = "/v1/models, /v1/completions and /v1/chat/completions"
    problem = InvalidRequest(f"{request.method} {request.url.path} is not served; there are {served}")
    return Response(responses.error_body(problem, error.status_code), error.status_code, media_type="application/json")


class _Gone(Exception):
    """The client closed the connection."""


class _TooLarge(InvalidRequest):
    default_reason = "BODY_TOO_LARGE"


class _Generation:
    """One of the two generating endpoints, as an ASGI application."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        checks: Checks,
        read: Callable[[bytes], Parsed],
        chat: bool,
        accepting: Callable[[], bool],
        wall_clock: Callable[[], float],
    ) -> None:
        self._orchestrator = orchestrator
        self._checks = checks
        self._read = read
        self._chat = chat
        self._accepting = accepting
        self._wall_clock = wall_clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reply = _Reply(send, headers.get("x-request-id") or uuid4().hex)
        try:
            await self._answer(headers, receive, reply)
        except _Gone:
            pass
        except StreamServeError as error:
            await reply.fail(error)
        except Exception:
            _log.exception("the OpenAI front failed", extra={"request_id": reply.request_id})
            await reply.fail(InternalError("the router failed; report this with its log"))

    async def _answer(self, headers: dict[str, str], receive: Receive, reply: _Reply) -> None:
        with self._orchestrator.metrics.refusals():
            parsed, request = await self._asked(headers, receive, reply)
        answer = responses.Answer(
            chat=self._chat,
            id=f"{'chatcmpl' if self._chat else 'cmpl'}-{request.id}",
            model=self._checks.model(parsed.model or ""),
            created=int(self._wall_clock()),
        )
        work = self._stream if parsed.stream else self._whole
        await _unless_gone(receive, work(request, answer, reply, parsed.include_usage))

    async def _asked(
        self, headers: dict[str, str], receive: Receive, reply: _Reply
    ) -> tuple[Parsed, GenerationRequest]:
        """Raises what is wrong with the request."""
        if not self._accepting():
            raise NotReady("the router is stopping: send the request to another one")
        try:
            checked_request_id(reply.request_id)
        except InvalidRequest:
            reply.request_id = uuid4().hex
            raise
        parsed = self._read(await _body(headers, receive))
        return parsed, self._checks.checked(
            parsed.to_message(), request_id=reply.request_id, remaining_seconds=_timeout(headers)
        )

    async def _whole(
        self, request: GenerationRequest, answer: responses.Answer, reply: _Reply, include_usage: bool
    ) -> None:
        async def collect(data: bytes) -> None:
            answer.add(inference_pb2.GenerateResponse.FromString(data))

        await self._orchestrator.serve(request, collect)
        await reply.whole(200, answer.whole())

    async def _stream(
        self, request: GenerationRequest, answer: responses.Answer, reply: _Reply, include_usage: bool
    ) -> None:
        async def forward(data: bytes) -> None:
            chunk = inference_pb2.GenerateResponse.FromString(data)
            event = answer.event(chunk, include_usage)
            if not reply.opened:
                await reply.open()
                event = answer.opening(include_usage) + event
            if chunk.finish_reason:
                await reply.part(event + (answer.usage_event() if include_usage else b"") + responses.DONE)
                await reply.taken()
            elif event:
                await reply.part(event)

        await self._orchestrator.serve(request, forward)
        await reply.end()


class _Reply:
    """The response side of one exchange."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.opened = False

    async def whole(self, status: int, body: bytes, extra: tuple[tuple[str, str], ...] = ()) -> None:
        await self._start(status, "application/json", (("content-length", str(len(body))), *extra))
        await self._send({"type": "http.response.body", "body": body})

    async def open(self) -> None:
        await self._start(200, "text/event-stream; charset=utf-8", (("cache-control", "no-cache"),))

    async def part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def taken(self) -> None:
        """Until the connection takes more, which it does not while too much of what it has is unread."""
        await self.part(b"")

    async def end(self, data: bytes = b"") -> None:
        """The last of a stream. A client that does not read holds up even this: not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._send({"type": "http.response.body", "body": data})

    async def fail(self, error: StreamServeError) -> None:
        """Say it as a status while that is possible, else as the stream's last event."""
        if not self.opened:
            status = 413 if isinstance(error, _TooLarge) else http_status(error)
            wait = responses.retry_after(error)
            await self.whole(status, responses.error_body(error, status), (("retry-after", wait),) if wait else ())
            return
        await self.end(responses.error_event(error))

    async def _start(self, status: int, content_type: str, extra: tuple[tuple[str, str], ...]) -> None:
        self.opened = True
        rows = (("content-type", content_type), ("x-request-id", self.request_id), *extra)
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in rows]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


async def _body(headers: dict[str, str], receive: Receive) -> bytes:
    """The whole body, bounded in size and time."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_SECONDS:g} s") from None


def _too_large() -> _TooLarge:
    return _TooLarge(f"the body is over {MAX_BODY_BYTES} bytes: send a shorter prompt")


def _timeout(headers: dict[str, str]) -> float | None:
    value = headers.get("x-request-timeout-ms")
    if value is None:
        return None
    # Python refuses to read a number of more than 4,300 digits.
    sound = value.isascii() and value.isdigit() and len(value) <= _TIMEOUT_DIGITS and 0 < int(value) < 2**31
    if not sound:
        raise InvalidRequest("x-request-timeout-ms must be a whole number of milliseconds above 0, at most 2147483647")
    return int(value) / 1000.0


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    both: set[asyncio.Future[None]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        await task
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
