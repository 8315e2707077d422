"""A client's request id is a name in one router, and workers serve several routers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from tests.support.calls import Answer, generate, generate_async, request
from tests.support.processes import LocalFleet, wait_until

MAX_TOKENS = 40
NAMES = {"a short one": "the-nightly-job", "the longest": "n" * 128}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    slow = {"simulator-step-seconds": "0.05"}
    with LocalFleet(tmp_path_factory.mktemp("ids"), lanes=1, engine_arguments=slow) as running:
        yield running


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_the_same_id_through_two_routers_is_two_requests(fleet: LocalFleet, name: str) -> None:
    message = request("a prompt", max_tokens=MAX_TOKENS, ignore_eos=True)

    async def both(*addresses: str) -> list[Answer]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(address)) for address in addresses]
        return [task.result() for task in tasks]

    async def one(address: str) -> Answer:
        async with grpc.aio.insecure_channel(address) as channel:
            return await generate_async(channel, message, request_id=name)

    with fleet.another_router() as second:
        address = second.ready["grpc"]
        wait_until(lambda: generate(address, request(max_tokens=2)).error is None, seconds=30, what="it takes traffic")
        answers = asyncio.run(both(fleet.grpc, address))
    assert [answer.error for answer in answers] == [None, None]
    assert [len(answer.token_ids) for answer in answers] == [MAX_TOKENS, MAX_TOKENS]
