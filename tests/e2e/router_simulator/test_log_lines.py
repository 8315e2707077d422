"""The request id on the log lines of a whole lane: two requests at once that end in different ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.support.calls import Answer, generate_async, request
from tests.support.processes import LocalFleet, wait_until

from streamserve.contract import signals
from streamserve.contract.request_id import for_workers
from streamserve.v1 import worker_pb2, worker_pb2_grpc

ENDED, LOST = "id-of-the-ended-one", "id-of-the-lost-one"
CAUSES = {ENDED: "ended the request", LOST: "the connection failed"}


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    slow = {"simulator-step-seconds": "0.1"}
    with LocalFleet(tmp_path_factory.mktemp("logs"), lanes=1, engine_arguments=slow) as running:
        yield running


def lines(fleet: LocalFleet) -> list[dict[str, Any]]:
    """Of all processes of ours; each is one JSON object with what every line has."""
    found = []
    for process in (fleet.router, *fleet.workers):
        for text in process.log.splitlines():
            found.append(json.loads(text))
            assert {"time", "level", "component", "logger", "message"} <= set(found[-1]), text
    return found


def test_each_line_that_concerns_a_request_carries_its_id_and_no_other_line_does(fleet: LocalFleet) -> None:
    """They run side by side on one stream between router and worker; one is ended on the worker, and then the other is
    cut off when the worker dies."""
    worker = fleet["lane-0-decode-0"]

    async def both() -> tuple[Answer, Answer]:
        ended, lost = Answer(), Answer()
        message = request("a prompt", max_tokens=900, ignore_eos=True)
        async with grpc.aio.insecure_channel(fleet.grpc) as channel, asyncio.TaskGroup() as group:
            one = group.create_task(generate_async(channel, message, timeout=300, request_id=ENDED, answer=ended))
            await begun(ended)
            group.create_task(generate_async(channel, message, timeout=300, request_id=LOST, answer=lost))
            await begun(lost)
            async with grpc.aio.insecure_channel(worker.ready["grpc"]) as direct:
                stub = worker_pb2_grpc.WorkerServiceStub(direct)
                asked = worker_pb2.AbortRequest(request_id=id_on_workers(fleet, worker.name))
                assert (await stub.Abort(asked, timeout=10)).found
            await one
            worker.kill()
        return ended, lost

    ended, lost = asyncio.run(both())
    for name, answer in {ENDED: ended, LOST: lost}.items():
        assert answer.error is not None and CAUSES[name] in answer.error.message
    seen = [line for line in lines(fleet) if any(name in json.dumps(line) for name in CAUSES)]
    failed = [line["request_id"] for line in seen if line["message"].startswith("request failed")]
    assert failed == [ENDED, LOST]
    # Beside these the router says what it now holds of their worker, and for whose sake it found out.
    for line in seen:
        assert [name for name in CAUSES if name in json.dumps(line)] == [line["request_id"]]
        assert CAUSES[line["request_id"]] in line["message"]


def id_on_workers(fleet: LocalFleet, worker: str) -> str:
    """Of the router's first request; the router's id is the one that the worker acknowledges in Redis."""
    with fleet.redis.client() as client:
        value = client.get(fleet.keys.worker_signals(worker))
    assert isinstance(value, bytes)
    (ack,) = signals.decode(value).acks
    return for_workers(ENDED, ack.router_id, 1)


async def begun(answer: Answer) -> None:
    """It has its first token."""
    what = {"seconds": 60, "what": "the first token"}
    await asyncio.to_thread(wait_until, lambda: answer.chunks or answer.error, **what)
