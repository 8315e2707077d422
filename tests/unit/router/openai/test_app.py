"""The OpenAI front over a session core on a fake fleet: what it counts, and clients that stop reading."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.router.flowguard.builders import lane
from tests.unit.router.scheduler.fakes import FakeFleet, Stage

from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.router.fronts.checks import Checks, ModelLimits
from streamserve.router.fronts.openai import app

SERVED = RuntimeConfig(id=ConfigId(uid="u", generation=1), served_names=("tiny",))


class Connection:
    """A client's side of one exchange. It takes what is sent until `full` says that it has had enough."""

    def __init__(self, body: dict[str, Any], full: Callable[[bytes], bool] = lambda read: False) -> None:
        self._body = json.dumps(body).encode()
        self.headers: list[tuple[bytes, bytes]] = []
        self._full = full
        self._ended = asyncio.Event()
        self.status = 0
        self.read = b""

    async def receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body}
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """As uvicorn does it: what is written before is waited for, and the end of an answer is a disconnect."""
        if self._full(self.read):
            await asyncio.Event().wait()
        self.status = message.get("status", self.status)
        self.read += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._ended.set()

    @property
    def whole(self) -> bool:
        return self._ended.is_set()


async def exchange(stage: Stage, connection: Connection, *, accepting: bool = True) -> None:
    checks = Checks(config=lambda: SERVED, limits=ModelLimits, clock=time.monotonic)
    built = app.build(
        stage.orchestrator, checks, config=lambda: SERVED, accepting=lambda: accepting, wall_clock=lambda: 1_000.0
    )
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "root_path": ""}
    await built(scope | {"headers": connection.headers}, connection.receive, connection.send)  # type: ignore[arg-type]


STREAM = {"prompt": "hello", "max_tokens": 4, "stream": True}


async def test_a_stream_ends_with_usage_and_done() -> None:
    connection = Connection(STREAM | {"stream_options": {"include_usage": True}})
    async with Stage(FakeFleet([lane("a")])) as stage:
        await exchange(stage, connection)
        assert stage.outcomes() == {"OK": 1}
    events = connection.read.decode().strip().split("\n\n")
    assert (connection.status, connection.whole, events[-1]) == (200, True, "data: [DONE]")
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 4
    assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


STOPPED = {
    "before the last chunk": lambda read: read.count(b"data: ") == 2,
    "with the last chunk unread": lambda read: b"[DONE]" in read,
}


@pytest.mark.parametrize("full", STOPPED.values(), ids=STOPPED.keys())
async def test_a_client_that_stops_reading_at_the_end_is_cut_off_and_counted_so(
    full: Callable[[bytes], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LAST_WORD_SECONDS", 0.01)
    connection = Connection(STREAM, full)
    async with Stage(FakeFleet([lane("a")]), slow_consumer_seconds=0.05) as stage:
        await exchange(stage, connection)
        assert stage.outcomes() == {"SLOW_CONSUMER": 1}
        assert stage.nothing_is_left()
    assert not connection.whole


ASKED = {"prompt": "hello", "max_tokens": 4}
# name: (body, headers, whether the router takes requests, status, outcome)
COUNTED: dict[str, tuple[dict[str, Any], dict[bytes, bytes], bool, int, str]] = {
    "an answer": (ASKED, {}, True, 200, "OK"),
    "a parameter that is not built": (ASKED | {"n": 2}, {}, True, 400, "INVALID_REQUEST"),
    "a prompt without words": (ASKED | {"prompt": ""}, {}, True, 400, "INVALID_REQUEST"),
    "another model": (ASKED | {"model": "big"}, {}, True, 404, "UNKNOWN_MODEL"),
    "a body that is too large": (ASKED, {b"content-length": b"99999999"}, True, 413, "BODY_TOO_LARGE"),
    "an id that is none": (ASKED, {b"x-request-id": b"a b"}, True, 400, "INVALID_REQUEST"),
    "a router that stops": (ASKED, {}, False, 503, "NOT_READY"),
}


@pytest.mark.parametrize(("body", "headers", "accepting", "status", "outcome"), COUNTED.values(), ids=COUNTED.keys())
async def test_whatever_is_asked_is_counted_once_with_its_outcome(
    body: dict[str, Any], headers: dict[bytes, bytes], accepting: bool, status: int, outcome: str
) -> None:
    connection = Connection(body)
    connection.headers = list(headers.items())
    async with Stage(FakeFleet([lane("a")])) as stage:
        await exchange(stage, connection, accepting=accepting)
        assert stage.outcomes() == {outcome: 1}
    assert (connection.status, connection.whole) == (status, True)
