"""Protos to the engine's records and back, checked: what is missing or of the wrong form is an InvalidRequest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamserve.contract import sampling as sampling_codec
from streamserve.contract import tokens
from streamserve.contract.errors import InvalidRequest
from streamserve.contract.request_id import MAX_WORKER_CHARACTERS
from streamserve.contract.sampling import MAX_WORKLOAD_CHARACTERS, Sampling
from streamserve.v1 import common_pb2, worker_pb2
from streamserve.worker.pipeserve.engine import (
    ChatPrompt,
    Chunk,
    EngineInfo,
    FinishReason,
    Outcome,
    Prompt,
    TextPrompt,
    TokenPrompt,
)

_REASONS: Final = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """Who this process is. `boot_id` is random for each start, so a restart shows."""

    id: str
    role: str
    lane: str
    revision: str
    namespace: str
    pair: str
    pair_uid: str
    boot_id: int
    engine: str


def request_id(message: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> str:
    value = message.request_id
    if not 1 <= len(value) <= MAX_WORKER_CHARACTERS:
        raise InvalidRequest(
            f"request_id has {len(value)} characters; use 1 to {MAX_WORKER_CHARACTERS}", field="request_id"
        )
    return value


def workload(name: str) -> str:
    if len(name) > MAX_WORKLOAD_CHARACTERS:
        raise InvalidRequest(
            f"workload has {len(name)} characters; use at most {MAX_WORKLOAD_CHARACTERS}", field="workload"
        )
    return name or "default"


def prompt(message: common_pb2.Prompt) -> Prompt:
    match message.WhichOneof("input"):
        case "token_ids":
            return TokenPrompt(tokens.unpack(message.token_ids.ids_le32))
        case "text":
            return TextPrompt(message.text)
        case "chat":
            if not message.chat.messages:
                raise InvalidRequest("the chat has no messages; send at least one", field="prompt.chat")
            return ChatPrompt(tuple((m.role, m.content) for m in message.chat.messages))
        case _:
            raise InvalidRequest("the prompt is missing; set token_ids, text or chat", field="prompt")


def sampling(message: common_pb2.SamplingParams) -> Sampling:
    return sampling_codec.from_proto(message)


def decode_response(chunk: Chunk) -> worker_pb2.DecodeResponse:
    message = worker_pb2.DecodeResponse(
        first_token_index=chunk.first_token_index, token_ids=chunk.token_ids, text=chunk.text
    )
    for position in chunk.logprobs:
        sampled = position.sampled
        entry = message.logprobs.add(token_id=sampled.token_id, logprob=sampled.logprob, text=sampled.text)
        for each in position.top:
            entry.top.add(token_id=each.token_id, logprob=each.logprob, text=each.text)
    if chunk.outcome is not None:
        message.finish_reason = _REASONS[chunk.outcome.reason]
        message.usage.CopyFrom(usage(chunk.outcome))
    return message


def usage(outcome: Outcome) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        cached_prompt_tokens=outcome.cached_prompt_tokens,
        drafted_tokens=outcome.drafted_tokens,
        accepted_tokens=outcome.accepted_tokens,
        depths_seen_mask=outcome.depths_seen_mask,
        kv_transfer_bytes=outcome.kv_transfer_bytes,
    )


def endpoint(identity: WorkerIdentity, address: str, engine_version: str) -> worker_pb2.WorkerEndpoint:
    return worker_pb2.WorkerEndpoint(
        id=identity.id,
        role=identity.role,
        lane=identity.lane,
        revision=identity.revision,
        address=address,
        boot_id=identity.boot_id,
        pair_uid=identity.pair_uid,
        engine=identity.engine,
        engine_version=engine_version,
    )


def kv_geometry(info: EngineInfo) -> worker_pb2.KvGeometry:
    kv = info.kv
    return worker_pb2.KvGeometry(
        block_tokens=kv.block_tokens,
        bytes_per_block=kv.bytes_per_block,
        total_blocks=kv.total_blocks,
        target_layers=kv.target_layers,
        draft_layers=kv.draft_layers,
        dtype=kv.dtype,
    )
