"""The KV cache of a prompt moves over NIXL, all of it and nothing else; where it does not, that shows."""

from __future__ import annotations

import json

from plain_reference import Reference
from real_fleet import Client, RealFleet
from tiny_pair import kv_bytes

from streamserve.contract import tokens
from streamserve.contract.errors import TransferFailed
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import common_pb2, worker_pb2

BLOCK_TOKENS = 128


async def received(client: Client) -> tuple[int, int, int]:
    """(bytes, transfers, expected bytes) over the decode workers, by vLLM's own counters."""
    states = [state for name, state in (await client.states()).items() if "decode" in name]
    assert {state.kv.block_tokens for state in states} == {BLOCK_TOKENS}
    return (
        sum(state.kv_bytes_received for state in states),
        sum(state.kv_transfers_received for state in states),
        sum(state.kv_bytes_expected for state in states),
    )


async def test_bytes_of_each_request_are_blocks_times_layers_of_target_and_draft(
    fleet: RealFleet, reference: Reference
) -> None:
    rows = [*reference.greedy[:8], max(reference.greedy, key=lambda row: row.prompt_tokens)]
    assert len({-(-row.prompt_tokens // BLOCK_TOKENS) for row in rows}) > 1, "prompts of one and of several blocks"
    async with fleet.client() as client:
        before = await received(client)
        moved = 0
        for row in rows:
            answer = await client.generate(row.prompt, max_tokens=8)
            assert answer.error is None
            expected = kv_bytes(row.prompt_tokens, BLOCK_TOKENS)
            assert answer.usage.kv_transfer_bytes == expected, row.prompt
            moved += expected
        after = await received(client)
    assert after[0] - before[0] == moved
    assert after[1] - before[1] == len(rows)
    assert after[2] - before[2] == moved


async def test_a_prompt_that_bypasses_the_prefill_worker_moves_nothing_and_says_so(
    fleet: RealFleet, reference: Reference
) -> None:
    await fleet.edit_and_wait(routing={"localPrefillMaxTokens": 1_000})
    try:
        async with fleet.client() as client:
            before = await received(client)
            for row in reference.greedy[:4]:
                answer = await client.generate(row.prompt, max_tokens=16)
                assert answer.error is None
                assert answer.route.prefill_mode == "local"
                assert not answer.route.prefill_worker
                assert answer.usage.kv_transfer_bytes == 0
                assert tuple(answer.token_ids) == row.token_ids[:16]
            assert await received(client) == before
    finally:
        await fleet.edit_and_wait(routing={"localPrefillMaxTokens": 0})


async def test_a_handle_whose_owner_is_gone_fails_the_transfer_and_recomputes_nothing(fleet: RealFleet) -> None:
    """Sent straight to a decode worker: a real handle whose side channel leads nowhere."""
    sampling = common_pb2.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompt = common_pb2.Prompt(token_ids={"ids_le32": tokens.pack(range(300, 500))})
    async with fleet.client() as client:
        ask = worker_pb2.PrefillRequest(request_id="nowhere", attempt=1, prompt=prompt, sampling=sampling)
        done = await client.workers["lane-0-prefill-0"].Prefill(ask, timeout=30)
        handle = json.loads(done.kv_handle)
        handle["vllm"] |= {"remote_engine_id": "of-nobody", "remote_port": 1}
        request = worker_pb2.DecodeRequest(
            request_id="nowhere", attempt=1, prompt=prompt, sampling=sampling, kv_handle=json.dumps(handle).encode()
        )
        decode = client.workers["lane-0-decode-0"]
        before = await received(client)
        got: list[int] = []
        error: BaseException | None = None
        try:
            async for message in decode.Decode(request, timeout=60):
                got.extend(message.token_ids)
        except Exception as raised:
            error = from_rpc_error(raised)  # type: ignore[arg-type]
        assert isinstance(error, TransferFailed), f"{error!r} after tokens {got}"
        assert not got
        assert await received(client) == before
        for worker in ("lane-0-prefill-0", "lane-0-decode-0"):
            await client.workers[worker].Abort(worker_pb2.AbortRequest(request_id="nowhere"), timeout=10)
        await client.idle(40)
        # The engine that was lied to goes on serving the pair it belongs to.
        answer = await client.generate("Question: What is 2 + 2?\nAnswer:", max_tokens=4)
        assert answer.error is None and answer.usage.kv_transfer_bytes > 0
