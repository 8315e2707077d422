"""What a request must be before it may wait for anything: the same checks for gRPC and OpenAI.

Every refusal names the field and says what to do. Nothing that a client sent is ignored: a field that this release
does not know is refused by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from streamserve.contract import sampling as sampling_contract
from streamserve.contract import tokens
from streamserve.contract.errors import DeadlineExceeded, InvalidRequest, NotReady, UnknownModel
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.sampling import MAX_WORKLOAD_CHARACTERS, Sampling
from streamserve.router.flowguard.view import FleetView
from streamserve.router.scheduler.request import GenerationRequest
from streamserve.v1 import common_pb2, inference_pb2

MAX_DEADLINE_SECONDS: Final = 1_800.0
# What gRPC rounds a deadline up to: one of which less is left had no more than this when it was sent.
DEADLINE_RESOLUTION_SECONDS: Final = 0.001
MAX_PRIORITY: Final = 10
MAX_CHAT_MESSAGES: Final = 4_096
BYTES_PER_TOKEN: Final = 4
# More that is not known is not searched for a number to name: a field of two bytes takes a hundred when it is listed.
_NAMED_UNKNOWN_BYTES: Final = 4_096
ROLES: Final = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the workers report; 0 while none has."""

    max_model_tokens: int = 0
    vocabulary_size: int = 0


def limits_of(view: FleetView) -> ModelLimits:
    """The shortest length and the largest vocabulary: they serve one model, and a worker checks for itself too."""
    workers = [worker for lane in view.lanes for worker in lane.workers]
    return ModelLimits(
        max_model_tokens=min((each.max_model_tokens for each in workers if each.max_model_tokens), default=0),
        vocabulary_size=max((each.vocabulary_size for each in workers), default=0),
    )


class Checks:
    """Turns a wire message into a request that the scheduler may have."""

    def __init__(
        self,
        *,
        config: Callable[[], RuntimeConfig],
        limits: Callable[[], ModelLimits],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._limits = limits
        self._clock = clock

    def parsed(self, data: bytes) -> inference_pb2.GenerateRequest:
        try:
            return inference_pb2.GenerateRequest.FromString(data)
        except DecodeError:
            raise InvalidRequest(
                "the message is no streamserve.v1.GenerateRequest: check the proto files of the client"
            ) from None

    def checked(
        self, message: inference_pb2.GenerateRequest, *, request_id: str, remaining_seconds: float | None
    ) -> GenerationRequest:
        """The request, or the first thing that is wrong with it."""
        now = self._clock()
        if remaining_seconds is not None and remaining_seconds < DEADLINE_RESOLUTION_SECONDS:
            raise DeadlineExceeded("the deadline was over when the request arrived; allow more time")
        _bounded(message.prompt.chat)
        _refuse_unknown(message)
        self.model(message.model)
        workload = _workload(message.workload)
        if not -MAX_PRIORITY <= message.priority <= MAX_PRIORITY:
            raise InvalidRequest(
                f"priority is {message.priority}; use {-MAX_PRIORITY} to {MAX_PRIORITY}", field="priority"
            )
        sampling = sampling_contract.from_proto(message.sampling)
        limits = self._limits()
        prompt_tokens = _prompt_tokens(message.prompt, limits)
        exact = message.prompt.HasField("token_ids")
        _fits(prompt_tokens, exact, sampling, limits)
        max_tokens = sampling.most_tokens
        if limits.max_model_tokens and exact:
            max_tokens = min(max_tokens, limits.max_model_tokens - prompt_tokens)
            message.sampling.max_tokens = max_tokens
        left = MAX_DEADLINE_SECONDS if remaining_seconds is None else min(remaining_seconds, MAX_DEADLINE_SECONDS)
        return GenerationRequest(
            id=request_id,
            prompt=message.prompt,
            prompt_tokens=prompt_tokens,
            prompt_estimated=not exact,
            sampling=sampling,
            sampling_message=message.sampling,
            max_tokens=max_tokens,
            workload=workload,
            priority=message.priority,
            arrival_seconds=now,
            deadline_seconds=now + left,
        )

    def model(self, name: str) -> str:
        """The served name that is meant; an empty one will do when there is only one."""
        served = self._config().served_names
        if not served:
            raise NotReady("no model is served yet: wait until the StreamPair's configuration has arrived")
        if not name and len(served) == 1:
            return served[0]
        if name in served:
            return name
        asked = f"model {name!r} is not served here" if name else "several names are served, so name one"
        raise UnknownModel(f"{asked}; served: {', '.join(served)}", field="model")


def _bounded(chat: common_pb2.ChatMessages) -> None:
    """Each message costs time, here and in the model's template, and takes no more than two bytes on the wire."""
    if len(chat.messages) > MAX_CHAT_MESSAGES:
        raise InvalidRequest(
            f"{len(chat.messages)} messages in one chat; send at most {MAX_CHAT_MESSAGES}", field="prompt.chat"
        )


def _refuse_unknown(message: inference_pb2.GenerateRequest) -> None:
    """First by size, which costs no more than a copy."""
    known = inference_pb2.GenerateRequest()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    unknown_bytes = message.ByteSize() - known.ByteSize()
    if unknown_bytes > _NAMED_UNKNOWN_BYTES:
        raise InvalidRequest(f"{unknown_bytes} bytes of fields that this release does not know; leave them out")
    if unknown_bytes:
        _name_unknown(message, "")


def _name_unknown(message: Message, path: str) -> None:
    """Raises InvalidRequest for the first field that is not known, here or further in."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        where = f" of {path}" if path else ""
        number = unknown[0].field_number
        raise InvalidRequest(
            f"unsupported parameter: field number {number}{where} is not known to this release; leave it out",
            field=path or None,
        )
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        inner = f"{path}.{descriptor.name}" if path else descriptor.name
        for part in [value] if isinstance(value, Message) else value:
            _name_unknown(part, inner)


def _workload(name: str) -> str:
    if len(name) > MAX_WORKLOAD_CHARACTERS or not name.isprintable():
        raise InvalidRequest(
            f"workload has {len(name)} characters; use at most {MAX_WORKLOAD_CHARACTERS} printable ones",
            field="workload",
        )
    return name or "default"


def _prompt_tokens(prompt: common_pb2.Prompt, limits: ModelLimits) -> int:
    """How many tokens the prompt has: counted for ids, bytes / 4 for text."""
    match prompt.WhichOneof("input"):
        case "token_ids":
            ids = tokens.unpack(prompt.token_ids.ids_le32)
            if not ids:
                raise _empty("prompt.token_ids")
            if limits.vocabulary_size and (highest := max(ids)) >= limits.vocabulary_size:
                raise InvalidRequest(
                    f"token id {highest} is outside the vocabulary; use ids from 0 to {limits.vocabulary_size - 1}",
                    field="prompt.token_ids",
                )
            return len(ids)
        case "text":
            if not prompt.text:
                raise _empty("prompt.text")
            return -(-len(prompt.text.encode()) // BYTES_PER_TOKEN)
        case "chat":
            messages = prompt.chat.messages
            if not messages or not any(message.content for message in messages):
                raise _empty("prompt.chat")
            for message in messages:
                if message.role not in ROLES:
                    raise InvalidRequest(
                        f"role {message.role!r} is not known; use one of {', '.join(ROLES)}", field="prompt.chat"
                    )
            return sum(-(-len(m.content.encode()) // BYTES_PER_TOKEN) + BYTES_PER_TOKEN for m in messages)
        case _:
            raise InvalidRequest("the prompt is missing: set token_ids, text or chat", field="prompt")


def _empty(field: str) -> InvalidRequest:
    return InvalidRequest("the prompt is empty: send at least one token", field=field)


def _fits(prompt_tokens: int, exact: bool, sampling: Sampling, limits: ModelLimits) -> None:
    """Against the model's length. For text only what is wrong whatever the tokenizer says; prefill checks the rest."""
    length = limits.max_model_tokens
    if not length:
        return
    if exact and prompt_tokens >= length:
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens; the model takes {length} with its answer: shorten the prompt",
            field="prompt",
        )
    prompt = prompt_tokens if exact else 1
    for name, asked in (("max_tokens", sampling.max_tokens or 0), ("min_tokens", sampling.min_tokens)):
        if prompt + asked > length:
            raise InvalidRequest(
                f"{name} is {asked}; the model's length of {length} leaves {length - prompt} after the prompt",
                field=f"sampling.{name}",
            )
