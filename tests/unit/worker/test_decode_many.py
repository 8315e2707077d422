"""The outbox of a stream that many calls share: nothing is lost, doubled, or out of order, whatever is put when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.errors import Overloaded, SlowConsumer
from streamserve.v1 import worker_pb2
from streamserve.worker import decode_many
from streamserve.worker.decode_many import Deliver, ManyCalls
from streamserve.worker.outbox import Outbox
from streamserve.worker.pipeserve.engine import Chunk

CALLS = 3
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, CALLS - 1)),
        st.tuples(st.just("pause"), st.integers(0, CALLS - 1)),
        st.tuples(st.just("resume"), st.integers(0, CALLS - 1)),
        st.tuples(st.just("take"), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_call_gets_what_was_put_for_it_in_order_and_its_end_once(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        outbox = Outbox()
        put, got, ended = [0] * CALLS, [0] * CALLS, [0] * CALLS
        paused: set[int] = set()

        async def take() -> None:
            for call, part in (await outbox.take()).items():
                assert call not in paused
                assert not ended[call]
                if part.chunk is not None:
                    assert part.chunk.first_token_index == got[call]
                    got[call] += len(part.chunk.token_ids)
                ended[call] += part.ended

        for what, call in steps:
            match what:
                case "put":
                    await outbox.put(call, Chunk(first_token_index=put[call], token_ids=[7]))
                    put[call] += 1
                case "pause":
                    outbox.pause(call)
                    paused.add(call)
                case "resume":
                    outbox.resume(call)
                    paused.discard(call)
                case _ if any(put[each] > got[each] for each in set(range(CALLS)) - paused):
                    await take()
        for call in range(CALLS):
            outbox.end(call)
        paused.clear()
        await take()
        assert got == put
        assert ended == [1] * CALLS
        outbox.close()
        assert await outbox.take() == {}

    asyncio.run(play())


async def test_a_call_whose_part_is_full_waits_and_others_do_not() -> None:
    outbox = Outbox(max_tokens=2)
    await outbox.put(1, Chunk(first_token_index=0, token_ids=[7, 7]))
    waiting = asyncio.create_task(outbox.put(1, Chunk(first_token_index=2, token_ids=[7])))
    await outbox.put(2, Chunk(first_token_index=0, token_ids=[7]))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert set(await outbox.take()) == {1, 2}
    await waiting
    assert set(await outbox.take()) == {1}


async def test_a_call_that_is_dropped_leaves_nothing_behind() -> None:
    outbox = Outbox()
    outbox.pause(1)
    await outbox.put(1, Chunk(first_token_index=0, token_ids=[7]))
    outbox.drop(1)
    outbox.resume(1)
    await outbox.put(2, Chunk(first_token_index=0, token_ids=[7]))
    assert set(await outbox.take()) == {2}


async def test_a_call_is_over_when_its_last_chunk_is_taken_and_its_load_is_that_of_then() -> None:
    """A drain waits for calls: one whose tokens lie here unsent is none that has ended."""
    outbox, asked = Outbox(), list[int]()

    def load() -> worker_pb2.LoadReport:
        asked.append(1)
        return worker_pb2.LoadReport()

    outbox.pause(1)
    last = asyncio.create_task(outbox.put_last(1, Chunk(first_token_index=0, token_ids=[7]), load))
    await outbox.put(2, Chunk(first_token_index=0, token_ids=[7]))
    assert set(await outbox.take()) == {2}
    outbox.resume(1)
    await asyncio.sleep(0)
    assert not last.done()
    part = (await outbox.take())[1]
    assert part.ended and part.load is load and not asked
    await asyncio.wait_for(last, 1)


class Seen:
    """A router that reads what is written."""

    def __init__(self) -> None:
        self.messages: list[worker_pb2.DecodeManyResponse] = []
        self.tokens = self.merges = 0
        self.asks: asyncio.Queue[worker_pb2.DecodeManyRequest | None] = asyncio.Queue()

    def sent(self, tokens: int) -> None:
        self.tokens += tokens

    def merged(self, chunks: int) -> None:
        self.merges += chunks

    def signals_due(self, router_id: int) -> bytes | None:
        return None

    def start(self, *numbers: int) -> None:
        for number in numbers:
            self.asks.put_nowait(worker_pb2.DecodeManyRequest(start=worker_pb2.DecodeCall(call=number)))

    async def asked(self) -> AsyncIterator[worker_pb2.DecodeManyRequest]:
        while (ask := await self.asks.get()) is not None:
            yield ask

    async def write(self, message: worker_pb2.DecodeManyResponse) -> None:
        self.messages.append(message)


async def test_what_all_calls_put_in_one_step_is_one_message() -> None:
    steps, seen = 5, Seen()
    step = asyncio.Condition()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        for index in range(steps):
            async with step:
                await step.wait()
            await deliver(Chunk(first_token_index=index, token_ids=[index]), None)

    seen.start(*range(1, 17))
    seen.asks.put_nowait(None)
    serving = asyncio.create_task(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write))
    for _ in range(steps):
        await asyncio.sleep(0.05)
        async with step:
            step.notify_all()
    await asyncio.wait_for(serving, 5)
    assert len(seen.messages) <= 2 * steps + 1
    assert not seen.messages[0].parts
    assert max(len(message.parts) for message in seen.messages) == 16
    assert seen.tokens == 16 * steps


async def test_an_error_ends_its_own_call_only_and_keeps_its_details() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        if request.request_id == "full":
            raise Overloaded("the worker is full", retry_after_seconds=2.0)
        await asyncio.sleep(0.01)
        await deliver(Chunk(first_token_index=0, token_ids=[7]), None)

    for number, name in ((1, "full"), (2, "fine")):
        call = worker_pb2.DecodeCall(call=number, request=worker_pb2.DecodeRequest(request_id=name))
        seen.asks.put_nowait(worker_pb2.DecodeManyRequest(start=call))
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    parts = [part for message in seen.messages for part in message.parts]
    assert {part.call: bool(part.error) for part in parts if part.ended} == {1: True, 2: False}
    assert [part.call for part in parts if part.response] == [2]


async def test_a_router_that_reads_nothing_ends_the_stream_and_every_call_on_it() -> None:
    seen, ended = Seen(), asyncio.Event()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        try:
            await deliver(Chunk(first_token_index=0, token_ids=[7]), None)
            await asyncio.sleep(60)
        finally:
            ended.set()

    def stuck(message: worker_pb2.DecodeManyResponse) -> Awaitable[None]:
        return asyncio.sleep(60)

    seen.start(1)
    with pytest.raises(SlowConsumer):
        await asyncio.wait_for(ManyCalls(answer, seen, 0.1).serve(seen.asked(), stuck), 5)
    assert ended.is_set()


async def test_what_is_too_much_for_one_message_is_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_many, "MAX_MESSAGE_BYTES", 300)
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        await deliver(Chunk(first_token_index=0, token_ids=[7], text="x" * 100), None)

    seen.start(*range(1, 9))
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    assert max(message.ByteSize() for message in seen.messages) < 450
    assert sum(len(part.response) > 100 for message in seen.messages for part in message.parts) == 8


async def test_a_call_that_is_cancelled_before_it_began_does_not_keep_the_stream() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        await asyncio.sleep(60)

    seen.start(1)
    seen.asks.put_nowait(worker_pb2.DecodeManyRequest(cancel=1))
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    assert not any(message.parts for message in seen.messages)


async def test_a_chunk_that_cannot_be_sent_ends_its_own_call_only() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        text = "\ud800" if request.request_id == "odd" else "fine"
        await deliver(Chunk(first_token_index=0, token_ids=[7], text=text), None)
        await asyncio.sleep(0.05)

    for number, name in ((1, "odd"), (2, "even")):
        call = worker_pb2.DecodeCall(call=number, request=worker_pb2.DecodeRequest(request_id=name))
        seen.asks.put_nowait(worker_pb2.DecodeManyRequest(start=call))
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    ends = [part for message in seen.messages for part in message.parts if part.ended]
    assert {part.call: bool(part.error) for part in ends} == {1: True, 2: False}


async def test_work_that_gives_itself_up_is_told_as_an_error() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        raise asyncio.CancelledError

    seen.start(1)
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    (part,) = [part for message in seen.messages for part in message.parts]
    assert part.ended
    assert part.error


async def test_asks_that_cannot_be_read_end_the_stream() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        await asyncio.sleep(60)

    async def asked() -> AsyncIterator[worker_pb2.DecodeManyRequest]:
        yield worker_pb2.DecodeManyRequest(start=worker_pb2.DecodeCall(call=1))
        raise ValueError("no message")

    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(asked(), seen.write), 5)


async def test_an_answer_that_was_not_read_to_its_end_is_none_that_was_given() -> None:
    seen, given = Seen(), asyncio.Event()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        await deliver(Chunk(first_token_index=0, token_ids=[7]), None)
        await asyncio.sleep(0.05)  # the first is being written
        await deliver(Chunk(first_token_index=1, token_ids=[7]), worker_pb2.LoadReport)
        given.set()

    async def stuck(message: worker_pb2.DecodeManyResponse) -> None:
        if message.parts:
            await asyncio.sleep(60)

    seen.start(1)
    serving = asyncio.create_task(ManyCalls(answer, seen, 0.2).serve(seen.asked(), stuck))
    await asyncio.sleep(0.1)
    with pytest.raises(SlowConsumer):
        await asyncio.wait_for(serving, 5)
    assert seen.tokens == 0
    assert not given.is_set()


async def test_the_last_chunk_and_the_end_of_its_call_are_one_part() -> None:
    seen = Seen()

    async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        await deliver(Chunk(first_token_index=0, token_ids=[7]), worker_pb2.LoadReport)

    seen.start(1)
    seen.asks.put_nowait(None)
    await asyncio.wait_for(ManyCalls(answer, seen, 5.0).serve(seen.asked(), seen.write), 5)
    (part,) = [part for message in seen.messages for part in message.parts]
    assert part.ended and part.response


async def test_an_answer_that_waits_whole_for_its_reader_gets_no_error_added() -> None:
    outbox = Outbox()
    last = asyncio.create_task(outbox.put_last(1, Chunk(first_token_index=0, token_ids=[7]), worker_pb2.LoadReport))
    await asyncio.sleep(0)
    last.cancel()
    outbox.end(1, b"the deadline passed")
    part = (await outbox.take())[1]
    assert (part.tokens, part.ended, part.error) == (1, True, b"")
