"""The canary: one small request through a (prefill, decode) pair that must move KV bytes to count as passed.

A random prompt (never in a prefix cache) slightly over one KV block, two output tokens. Proof that bytes crossed:
the request's own count (usage.kv_transfer_bytes), else the decode worker's counter before and after. A decode worker
that silently recomputed the prompt fails the canary.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from streamserve.contract import tokens
from streamserve.contract.errors import InternalError, StreamServeError, TransferFailed, WorkerLost
from streamserve.router.worker_client import WorkerClient
from streamserve.v1 import common_pb2, worker_pb2

TIMEOUT_SECONDS: Final = 30.0
OUTPUT_TOKENS: Final = 2
EXTRA_PROMPT_TOKENS: Final = 9
UNKNOWN_BLOCK_TOKENS: Final = 128
# Below this every tokenizer keeps its special tokens; above are words.
_FIRST_PLAIN_TOKEN: Final = 16


class Booked(Protocol):
    """What the canary needs of a booking."""

    def dispatch(self) -> worker_pb2.Dispatch: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the pair."""

    worker_id: str
    client: WorkerClient
    booking: Booked


async def canary(prefill: Side, decode: Side, rng: Random, *, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    """Bytes that crossed. Raises a StreamServeError that says which leg failed and how."""
    request_id = f"canary-{rng.getrandbits(64):016x}"
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _transfer(request_id, prefill, decode, rng, timeout_seconds)
    except TimeoutError:
        raise WorkerLost(f"no answer within {timeout_seconds:g} s") from None
    finally:
        prefill.booking.release()
        decode.booking.release()


async def _transfer(request_id: str, prefill: Side, decode: Side, rng: Random, timeout_seconds: float) -> int:
    before = await decode.client.get_state(timeout_seconds=2.0)
    prompt = _prompt(before, rng)
    sampling = common_pb2.SamplingParams(
        max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True
    )
    held = True
    try:
        answer = await prefill.client.prefill(
            worker_pb2.PrefillRequest(
                request_id=request_id,
                attempt=1,
                prompt=prompt,
                sampling=sampling,
                dispatch=prefill.booking.dispatch(),
            ),
            timeout_seconds=timeout_seconds,
        )
        if not answer.kv_handle:
            raise InternalError(f"{prefill.worker_id} returned no KV handle")
        request = worker_pb2.DecodeRequest(
            request_id=request_id,
            attempt=1,
            prompt=common_pb2.Prompt(token_ids=answer.prompt_token_ids),
            sampling=sampling,
            dispatch=decode.booking.dispatch(),
            kv_handle=answer.kv_handle,
            cached_prompt_tokens=answer.cached_prompt_tokens,
        )
        usage = await _drain(decode, request, timeout_seconds)
        held = False
    finally:
        if held:
            await _abort(request_id, prefill, decode)
    if usage.kv_transfer_bytes:
        return int(usage.kv_transfer_bytes)
    after = await decode.client.get_state(timeout_seconds=2.0)
    if after.kv_bytes_received > before.kv_bytes_received:
        return int(after.kv_bytes_received - before.kv_bytes_received)
    raise TransferFailed(f"{decode.worker_id} answered, but no KV bytes came from {prefill.worker_id}")


def _prompt(state: worker_pb2.GetStateResponse, rng: Random) -> common_pb2.Prompt:
    length = (state.kv.block_tokens or UNKNOWN_BLOCK_TOKENS) + EXTRA_PROMPT_TOKENS
    if state.max_model_tokens:
        length = max(1, min(length, state.max_model_tokens - OUTPUT_TOKENS))
    vocabulary = state.vocabulary_size or 256
    first = min(_FIRST_PLAIN_TOKEN, vocabulary - 1)
    ids = tokens.pack(rng.randrange(first, vocabulary) for _ in range(length))
    return common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=ids))


async def _drain(decode: Side, request: worker_pb2.DecodeRequest, timeout_seconds: float) -> common_pb2.Usage:
    count, usage = 0, common_pb2.Usage()
    async with decode.client.decode(request, timeout_seconds=timeout_seconds) as stream:
        async for chunk in stream:
            count += len(chunk.message.token_ids)
            if chunk.message.HasField("usage"):
                usage = chunk.message.usage
    if count != OUTPUT_TOKENS:
        raise InternalError(f"{decode.worker_id} sent {count} tokens where {OUTPUT_TOKENS} were asked for")
    return usage


async def _abort(request_id: str, *sides: Side) -> None:
    for side in sides:
        with suppress(StreamServeError):
            await side.client.abort(request_id, timeout_seconds=1.0)
