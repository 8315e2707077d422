"""One lane whose drafter is the target itself, with faults that can be switched on inside vLLM."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engine_faults import CORRUPT_DRAFTS, ZERO_DRAFT_KV, install
from plain_reference import Expected, Reference
from real_fleet import Answer, Fleets, RealFleet
from tiny_pair import TARGET, kv_bytes

from streamserve.contract import tokens
from streamserve.contract.errors import StreamServeError, TransferFailed, WorkerLost
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import common_pb2, worker_pb2

# A drafter that costs as much as the target brings k + 1 tokens for k + 1 forward passes and the overhead of one step:
# each depth is better than the one before by ever less, and at 6 by too little to tell from noise in so few steps.
MAX_DEPTH = 3
BUILT_DEPTH, FIXED_DEPTH = 6, 4
BLOCK_TOKENS = 128
TOKENS = 120
DECODE, PREFILL = "lane-0-decode-0", "lane-0-prefill-0"
LEARN, WATCH, WINDOWS = 16, 6, 5
SETTLED = 0.85


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def lane(
    reference: Reference, fleets: Fleets, switches: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealFleet]:
    fleets.close()
    fleet = RealFleet(tmp_path_factory.mktemp("lane"), lanes=1, environment=install(switches))
    fleet.document["spec"]["speculation"]["draft"]["name"] = str(TARGET)
    fleet.document["spec"]["speculation"]["depth"] = {"min": 0, "max": BUILT_DEPTH, "fixed": FIXED_DEPTH}
    fleet.start()
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(autouse=True)
def all_off(switches: Path) -> Iterator[None]:
    yield
    for name in (CORRUPT_DRAFTS, ZERO_DRAFT_KV):
        (switches / name).unlink(missing_ok=True)


def kill_whole(worker: psutil.Process) -> None:
    """The worker and its engine: as long as the engine lives, its KV can be pulled."""
    doomed = [worker, *worker.children(recursive=True)]
    for process in doomed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _, left = psutil.wait_procs(doomed, timeout=10)
    assert not left, left


async def run(fleet: RealFleet, rows: tuple[Expected, ...]) -> list[Answer]:
    """One after another: the load at which the depth is to settle is one request."""
    answers = []
    async with fleet.client() as client:
        for row in rows:
            answer = await client.generate(row.prompt, max_tokens=TOKENS)
            assert answer.error is None, answer.error
            answers.append(answer)
    turned = sum(tuple(answer.token_ids) != row.token_ids[:TOKENS] for answer, row in zip(answers, rows, strict=True))
    assert turned <= 1, f"{turned} texts differ from plain vLLM"
    return answers


def acceptance(answers: list[Answer]) -> float:
    return sum(a.usage.accepted_tokens for a in answers) / max(1, sum(a.usage.drafted_tokens for a in answers))


async def settled(fleet: RealFleet, reference: Reference, at: int) -> list[float]:
    """Share of the decode steps at each depth, once most are at `at`, or when the law has had its time to learn: on a
    machine that others use too, what a step takes changes now and then, and is learnt anew."""
    await run(fleet, reference.greedy[:LEARN])
    for _ in range(WINDOWS):
        async with fleet.client() as client:
            before = (await client.states())[DECODE].depth_histogram
            await run(fleet, reference.greedy[LEARN : LEARN + WATCH])
            after = (await client.states())[DECODE].depth_histogram
        steps = [b - a for a, b in zip(before, after, strict=True)]
        shares = [count / sum(steps) for count in steps]
        print("steps by depth:", [round(share, 2) for share in shares])
        if shares[at] >= SETTLED:
            break
    return shares


async def test_goodput_settles_at_the_deepest_where_the_drafter_is_the_target(
    lane: RealFleet, reference: Reference
) -> None:
    await lane.edit_and_wait(speculation={"depth": {"min": 0, "max": MAX_DEPTH, "fixed": MAX_DEPTH}})
    shares = await settled(lane, reference, MAX_DEPTH)
    assert shares[MAX_DEPTH] >= SETTLED, shares


async def test_goodput_settles_at_the_shallowest_where_no_draft_is_ever_right(
    lane: RealFleet, reference: Reference, switches: Path
) -> None:
    (switches / CORRUPT_DRAFTS).touch()
    shares = await settled(lane, reference, 0)
    assert shares[0] >= SETTLED, shares


async def test_without_the_drafters_transferred_kv_the_acceptance_drops_and_the_text_stays(
    lane: RealFleet, reference: Reference, switches: Path
) -> None:
    depth = {"min": 0, "max": BUILT_DEPTH, "fixed": FIXED_DEPTH}
    await lane.edit_and_wait(speculation={"policy": "Fixed", "depth": depth})
    rows = reference.greedy[:12]
    whole = await run(lane, rows)
    (switches / ZERO_DRAFT_KV).touch()
    zeroed = await run(lane, rows)
    for row, answer in zip(rows, zeroed, strict=True):
        assert answer.usage.kv_transfer_bytes == kv_bytes(row.prompt_tokens, BLOCK_TOKENS, (TARGET, TARGET))
    print(f"accepted per draft: {acceptance(whole):.3f} with the drafter's KV, {acceptance(zeroed):.3f} without")
    assert acceptance(whole) > 0.9
    assert acceptance(zeroed) < acceptance(whole) - 0.1


async def test_a_prefill_worker_killed_before_the_pull_fails_it_and_the_ladder_says_local(
    lane: RealFleet, reference: Reference
) -> None:
    sampling = common_pb2.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompt = common_pb2.Prompt(token_ids={"ids_le32": tokens.pack(range(300, 500))})
    async with lane.client() as client:
        ask = worker_pb2.PrefillRequest(request_id="orphan", attempt=1, prompt=prompt, sampling=sampling)
        done = await client.workers[PREFILL].Prefill(ask, timeout=30)
        before = (await client.states())[DECODE]
        kill_whole(lane.worker(PREFILL))
        request = worker_pb2.DecodeRequest(
            request_id="orphan", attempt=1, prompt=prompt, sampling=sampling, kv_handle=done.kv_handle
        )
        got: list[int] = []
        error: StreamServeError | None = None
        try:
            async for message in client.workers[DECODE].Decode(request, timeout=60):
                got.extend(message.token_ids)
        except Exception as raised:
            error = from_rpc_error(raised)  # type: ignore[arg-type]
        assert isinstance(error, TransferFailed), f"{error!r} after tokens {got}"
        assert not got
        row = reference.greedy[0]
        began = time.monotonic()
        answer = await client.generate(row.prompt, max_tokens=32, seconds=30)
        print(f"with the prefill worker gone: {answer.route} in {time.monotonic() - began:.2f} s")
        if answer.error is None:
            assert answer.route.prefill_mode == "local"
            assert answer.usage.kv_transfer_bytes == 0
            assert tuple(answer.token_ids) == row.token_ids[:32]
        else:
            assert isinstance(answer.error, WorkerLost | TransferFailed), answer.error
        state = await client.workers[DECODE].GetState(worker_pb2.GetStateRequest(), timeout=10)
        assert state.kv_bytes_received == before.kv_bytes_received
