"""The simulator: tokens by position, blocks that come back, a batch that stays within its bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.errors import InvalidRequest, StreamServeError, TransferFailed, WorkerLost
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.contract.sampling import Sampling
from streamserve.runtime.errors import SetupError
from streamserve.worker.pipeserve import simulated_kv, simulated_tokens, simulator
from streamserve.worker.pipeserve.engine import ChatPrompt, Chunk, FinishReason, Job, TextPrompt, TokenPrompt
from streamserve.worker.pipeserve.simulated_kv import Handle
from streamserve.worker.pipeserve.simulated_scheduler import Scheduler, SimulatedSequence, Stage
from streamserve.worker.pipeserve.simulator import Simulator, expected_token

FAST = {"simulator-slowdown": "0.02"}


def config(generation: int = 1, **speculation: object) -> RuntimeConfig:
    given_or_deep = speculation or {"max_depth": 6}
    return RuntimeConfig(
        id=ConfigId(uid="u1", generation=generation),
        speculation=SpeculationConfig(**given_or_deep),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def engine(role: str = "decode", **arguments: str) -> AsyncIterator[Simulator]:
    built = await simulator.create(
        role=role,
        model="tiny",
        draft="tiny-draft",
        method="DraftModel",
        max_depth=6,
        engine_args={**FAST, **{name.replace("_", "-"): value for name, value in arguments.items()}},
        initial=config(),
        worker_id=f"lane-0-{role}-0",
        nixl_address=("127.0.0.1", 0),
        run_dir=Path(),
    )
    try:
        yield built
    finally:
        await built.stop()


def job(name: str = "a#1", prompt: range = range(300, 340), **sampling: object) -> Job:
    return Job(
        request_id=name,
        prompt=TokenPrompt(prompt),
        sampling=Sampling(**{"max_tokens": 16, **sampling}),  # type: ignore[arg-type]
    )


async def read(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def ids(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


# ---- tokens ----


def test_tokens_depend_on_prompt_and_position_alone_and_stay_in_the_vocabulary() -> None:
    assert [expected_token([1, 2, 3], p) for p in range(4)] == [expected_token((1, 2, 3), p) for p in range(4)]
    assert expected_token([1, 2, 3], 0) != expected_token([1, 2, 4], 0)
    assert {256 <= expected_token([5], p, 300) < 300 for p in range(500)} == {True}
    assert len({expected_token([5], p) for p in range(500)}) > 400


@given(st.text(max_size=60))
def test_text_comes_back_from_its_tokens(text: str) -> None:
    assert simulated_tokens.decode(simulated_tokens.encode(text, 4_096)) == text


@given(st.lists(st.integers(256, 4_095), max_size=20))
def test_generated_words_come_back_as_their_tokens(tokens: list[int]) -> None:
    assert simulated_tokens.encode(simulated_tokens.decode(tokens), 4_096) == tokens


# ---- one engine ----


async def test_positions_start_at_0_follow_each_other_and_end_with_an_outcome() -> None:
    async with engine() as decode:
        chunks = await read(decode.generate(job(max_tokens=50)))
    assert ids(chunks) == [expected_token(range(300, 340), p) for p in range(50)]
    at = 0
    for chunk in chunks:
        assert chunk.first_token_index == at
        at += len(chunk.token_ids)
    assert [chunk.outcome is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1].outcome
    assert last is not None
    assert (last.reason, last.prompt_tokens, last.completion_tokens) == (FinishReason.LENGTH, 40, 50)


async def test_text_and_chat_prompts_are_tokenized_and_logprobs_have_the_asked_width() -> None:
    async with engine() as decode:
        asked = Job(request_id="t", prompt=TextPrompt("hi"), sampling=Sampling(max_tokens=3, logprobs=2))
        chunks = await read(decode.generate(asked))
        assert ids(chunks) == [expected_token(list(b"hi"), p) for p in range(3)]
        assert [len(p.top) for chunk in chunks for p in chunk.logprobs] == [2, 2, 2]
        chat = Job(request_id="c", prompt=ChatPrompt((("user", "hi"),)), sampling=Sampling(max_tokens=1))
        assert ids(await read(decode.generate(chat))) == [expected_token(list(b"user: hi\nassistant:"), 0)]


async def test_kv_is_held_pulled_counted_and_freed_on_both_sides() -> None:
    async with engine("prefill") as prefill, engine() as decode:
        done = await prefill.prefill(job())
        assert prefill.snapshot().kv_blocks_used == 3
        chunks = await read(decode.generate(job(), kv_handle=done.kv_handle))
        assert ids(chunks) == [expected_token(range(300, 340), p) for p in range(16)]
        last = chunks[-1].outcome
        assert last is not None
        assert last.kv_transfer_bytes == 3 * decode.info.kv.bytes_per_block
        seen = decode.snapshot()
        assert (seen.kv_bytes_received, seen.kv_transfers_received) == (last.kv_transfer_bytes, 1)
        assert (prefill.snapshot().kv_blocks_used, seen.kv_blocks_used) == (0, 0)
        with pytest.raises(TransferFailed, match="holds no KV"):
            await read(decode.generate(job("b#1"), kv_handle=done.kv_handle))
        with pytest.raises(TransferFailed, match="not one of the simulator's"):
            await read(decode.generate(job("c#1"), kv_handle=b'{"engine": "Vllm"}'))
        assert decode.snapshot().kv_blocks_used == 0


async def test_whatever_ends_a_pull_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 5_000)
        await reader.read()
        writer.close()

    async def reset(handle: Handle, transfer_seconds: float) -> None:
        raise RuntimeError("the transport is closed")

    peer = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = peer.sockets[0].getsockname()[1]
    handle = Handle("p", "a#1", "127.0.0.1", port, tokens=40, blocks=3, bytes_per_block=64)
    wrong = replace(handle, blocks="three")  # type: ignore[arg-type]
    async with engine() as decode, asyncio.timeout(5), peer:
        with pytest.raises(TransferFailed, match="was lost during the transfer"):
            await read(decode.generate(job(), kv_handle=handle.to_bytes()))
        with pytest.raises(TransferFailed, match="not one of the simulator's: no number where one belongs"):
            await read(decode.generate(job(), kv_handle=wrong.to_bytes()))
        monkeypatch.setattr(simulated_kv, "pull", reset)
        with pytest.raises(TransferFailed, match="the transfer failed: RuntimeError: the transport is closed"):
            await read(decode.generate(job(), kv_handle=handle.to_bytes()))
        seen = decode.snapshot()
        assert (seen.alive, seen.kv_transfers_failed, seen.kv_blocks_used, seen.waiting_requests) == (True, 2, 0, 0)


async def test_an_aborted_prefill_frees_its_blocks_running_or_held() -> None:
    async with engine("prefill", simulator_slowdown="1") as prefill:
        running = asyncio.ensure_future(prefill.prefill(job(prompt=range(300, 2_300))))
        await asyncio.sleep(0.02)
        assert prefill.snapshot().kv_blocks_used > 0
        await prefill.abort("a#1")
        with pytest.raises(WorkerLost):
            await running
        assert prefill.snapshot().kv_blocks_used == 0
        await prefill.prefill(job("b#1"))
        await prefill.abort("b#1")
        assert prefill.snapshot().kv_blocks_used == 0


async def test_an_adopted_bound_holds_for_every_later_step() -> None:
    async with engine() as decode:
        running = decode.generate(job(max_tokens=2_000))
        await anext(running)
        for generation, depth in enumerate((6, 0, 3, 0), start=2):
            bounds = config(generation, min_depth=depth, max_depth=depth).speculation
            adopted = await decode.configure(config(generation).id, bounds)
            assert adopted.id.generation == generation
            assert bounds.min_depth <= decode.snapshot().depth <= bounds.max_depth, "shown before the next step"
            before = decode.snapshot().depth_histogram
            for _ in range(5):
                await anext(running)
            after = decode.snapshot().depth_histogram
            assert [d for d, (old, new) in enumerate(zip(before, after, strict=True)) if new > old] == [depth]
        await running.aclose()  # type: ignore[attr-defined]
        with pytest.raises(InvalidRequest, match="more than the 6"):
            await decode.configure(config(9).id, SpeculationConfig(max_depth=7))


async def test_goodput_goes_deep_with_a_good_drafter_and_shallow_with_a_bad_one() -> None:
    async def settled(acceptance: str) -> float:
        async with engine(simulator_acceptance=acceptance) as decode:
            await read(decode.generate(job(max_tokens=1_500, prompt=range(300, 310))))
            histogram = decode.snapshot().depth_histogram
            return sum(depth * n for depth, n in enumerate(histogram)) / sum(histogram)

    assert await settled("[1.0]") > 4.5
    assert await settled("[0.0]") < 1.5


async def test_a_dead_engine_raises_worker_lost_everywhere(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    async with engine(simulator_control=str(control)) as decode:
        running = decode.generate(job(max_tokens=8_000))
        await anext(running)
        control.write_text(json.dumps({"die": "out of memory"}))
        with pytest.raises(WorkerLost, match="out of memory"):
            await read(running)
        assert not decode.snapshot().alive
        with pytest.raises(WorkerLost):
            await anext(decode.generate(job("b#1")))
        with pytest.raises(WorkerLost):
            await decode.configure(config(2).id, SpeculationConfig())


async def test_an_engine_whose_steps_fail_is_dead_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("3 blocks given back of 2 taken")

    async with engine() as decode, asyncio.timeout(5):
        running = decode.generate(job(max_tokens=8_000))
        await anext(running)
        waiting = asyncio.create_task(read(decode.generate(job("b#1", max_tokens=8_000))))
        await anext(running)
        monkeypatch.setattr(decode.scheduler, "finish", fail)
        # Neither can be taken out of a batch that has come into disorder.
        monkeypatch.setattr(decode.scheduler, "end", fail)
        for request in (read(running), waiting):
            with pytest.raises(WorkerLost, match="its step loop failed: AssertionError: 3 blocks"):
                await request
        assert (decode.snapshot().alive, "3 blocks" in decode.snapshot().death) == (False, True)
        with pytest.raises(WorkerLost):
            await read(decode.generate(job("c#1")))


async def test_a_stalled_engine_stands_still_and_goes_on_when_the_fault_ends(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    async with engine(simulator_control=str(control)) as decode:
        running = decode.generate(job(max_tokens=2_000))
        await anext(running)
        control.write_text('{"stall": true}')
        await asyncio.sleep(0.25)
        before = sum(decode.snapshot().depth_histogram)
        await asyncio.sleep(0.1)
        assert sum(decode.snapshot().depth_histogram) == before
        control.unlink()
        assert len(ids(await read(running))) >= 1_900


ARGUMENTS = {
    "an unknown one": ({"max-num-seq": "4"}, "did you mean max-num-seqs"),
    "no number": ({"max-num-seqs": "many"}, "whole number"),
    "too few": ({"max-num-seqs": "0"}, "at least 1"),
    "a pool that is smaller than one prompt": ({"num-gpu-blocks-override": "4"}, "lower max-model-len"),
    "an acceptance that is no rate": ({"simulator-acceptance": "[2]"}, "test hook"),
}


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
async def test_engine_arguments_are_refused_by_name(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        async with engine(**arguments):
            pass


# ---- the batch, as a pure machine ----

KINDS = ("local", "held", "remote")
Ask = tuple[int, int, str]  # prompt tokens, max tokens, one of KINDS


def test_kv_that_has_come_runs_though_the_one_before_it_finds_no_blocks() -> None:
    """Ten blocks of 16 tokens: `first` has five, the pull of `second` takes five, then `first` needs a sixth."""
    rng = Random(0)
    scheduler = Scheduler(max_running=4, max_step_tokens=256, block_tokens=16, total_blocks=10)
    first = SimulatedSequence("first", (0, 0), [1] * 79, 8)
    second = SimulatedSequence("second", (0, 1), [1] * 79, 1, remote=True)
    scheduler.add(first)
    scheduler.finish(scheduler.plan(lambda _: 0, ceiling=0), lambda _: 0.0, rng)
    scheduler.add(second)
    assert scheduler.start_pulls() == [second]
    while first.stage is Stage.RUNNING:
        scheduler.finish(scheduler.plan(lambda _: 0, ceiling=0), lambda _: 0.0, rng)
    scheduler.pulled(second)
    ended = []
    for _ in range(12):
        emissions = scheduler.finish(scheduler.plan(lambda _: 0, ceiling=0), lambda _: 0.0, rng)
        ended += [e.sequence.request_id for e in emissions if e.sequence.stage is Stage.ENDED]
    assert ended == ["second", "first"]


@settings(max_examples=60, deadline=None)
@given(
    asks=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.sampled_from(KINDS)), min_size=1, max_size=24),
    ends=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 23)), max_size=12),
    max_running=st.integers(1, 6),
    blocks=st.integers(25, 60),
    seed=st.integers(0, 99),
)
def test_any_schedule_stays_within_batch_and_pool_and_ends_with_every_block_back(
    asks: list[Ask], ends: list[tuple[int, int]], max_running: int, blocks: int, seed: int
) -> None:
    rng = Random(seed)
    scheduler = Scheduler(max_running=max_running, max_step_tokens=32, block_tokens=4, total_blocks=blocks)
    sequences = [
        SimulatedSequence(
            f"r{n}", (0, n), [1] * prompt, 1 if kind == "held" else most, hold=kind == "held", remote=kind == "remote"
        )
        for n, (prompt, most, kind) in enumerate(asks)
    ]
    transfers: dict[int, list[SimulatedSequence]] = {}
    arrivals = {n: rng.randrange(20) for n in range(len(sequences))}
    tokens = dict.fromkeys(range(len(sequences)), 0)
    for turn in range(4_000):
        for n, sequence in enumerate(sequences):
            if arrivals[n] == turn:
                scheduler.add(sequence)
        for when, victim in ends:
            if when == turn and victim < len(sequences) and arrivals[victim] <= turn:
                scheduler.end(sequences[victim])
        for sequence in transfers.pop(turn, []):
            scheduler.pulled(sequence)
        for sequence in scheduler.start_pulls():
            transfers.setdefault(turn + rng.randrange(1, 9), []).append(sequence)
        step = scheduler.plan(lambda decoding: rng.randrange(7), ceiling=6)
        assert len(scheduler.running) <= max_running
        assert scheduler.pool.used <= blocks
        assert sum(count + drafts for _, count, drafts in step.work) <= 32
        for emission in scheduler.finish(step, lambda position: 0.6, rng):
            n = int(emission.sequence.request_id[1:])
            assert emission.first_index == tokens[n]
            tokens[n] += emission.tokens
        assert scheduler.pool.used == sum(s.blocks for s in sequences)
        for held in list(scheduler.held.values()):
            if rng.random() < 0.3:
                scheduler.end(held)
        if turn > 100 and all(s.stage is Stage.ENDED for s in sequences):
            break
    assert all(s.stage is Stage.ENDED for s in sequences)
    assert scheduler.pool.used == 0
    aborted = {victim for _, victim in ends}
    for n, (_, most, kind) in enumerate(asks):
        if n not in aborted:
            assert tokens[n] == (0 if kind == "held" else most)


@settings(max_examples=12, deadline=None)
@given(
    schedule=st.lists(
        st.tuples(st.floats(0, 0.02), st.integers(1, 60), st.booleans(), st.integers(0, 5)), min_size=1, max_size=14
    )
)
def test_no_schedule_of_requests_and_aborts_leaves_a_block_or_a_stream(
    schedule: list[tuple[float, int, bool, int]],
) -> None:
    async def body() -> None:
        async with (
            engine("prefill", max_num_seqs="3", num_gpu_blocks_override="80", max_model_len="1024") as prefill,
            engine("decode", max_num_seqs="3", num_gpu_blocks_override="80", max_model_len="1024") as decode,
        ):

            async def one(number: int, delay: float, most: int, remote: bool, reads: int) -> None:
                await asyncio.sleep(delay)
                asked = job(f"r{number}#1", range(300, 310 + 7 * number), max_tokens=most)
                handle = (await prefill.prefill(asked)).kv_handle if remote else b""
                stream = decode.generate(asked, kv_handle=handle)
                got: list[int] = []
                try:
                    async for chunk in stream:
                        assert chunk.first_token_index == len(got)
                        got.extend(chunk.token_ids)
                        if reads and len(got) >= reads:
                            break
                finally:
                    await stream.aclose()  # type: ignore[attr-defined]
                    await prefill.abort(asked.request_id)
                prompt = range(300, 310 + 7 * number)
                assert got == [expected_token(prompt, p) for p in range(len(got))]

            async with asyncio.timeout(20):
                results = await asyncio.gather(
                    *(one(n, *ask) for n, ask in enumerate(schedule)), return_exceptions=True
                )
            assert [r for r in results if isinstance(r, Exception) and not isinstance(r, StreamServeError)] == []
            await asyncio.sleep(0.02)
            for side in (prefill, decode):
                seen = side.snapshot()
                assert (seen.kv_blocks_used, seen.running_requests, seen.waiting_requests) == (0, 0, 0)
                assert not side._streams

    asyncio.run(body())
