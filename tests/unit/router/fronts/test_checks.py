"""What both fronts refuse, and what they fill in."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.router.flowguard.builders import fleet, lane

from streamserve.contract import sampling, tokens
from streamserve.contract.errors import DeadlineExceeded, InvalidRequest, NotReady, StreamServeError, UnknownModel
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.router.fronts.checks import MAX_DEADLINE_SECONDS, Checks, ModelLimits, limits_of
from streamserve.v1 import common_pb2, inference_pb2

LIMITS = ModelLimits(max_model_tokens=100, vocabulary_size=1_000)


def checks(*names: str, limits: ModelLimits = LIMITS) -> Checks:
    config = RuntimeConfig(id=ConfigId(uid="u", generation=1), served_names=names)
    return Checks(config=lambda: config, limits=lambda: limits, clock=lambda: 50.0)


def ids(*values: int, **sampling: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=tokens.pack(values))),
        sampling=common_pb2.SamplingParams(**sampling),
    )


def text(value: str, **sampling: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text=value), sampling=common_pb2.SamplingParams(**sampling)
    )


def chat(role: str, content: str) -> inference_pb2.GenerateRequest:
    return chat_of(common_pb2.ChatMessage(role=role, content=content))


def chat_of(*messages: common_pb2.ChatMessage) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(chat=common_pb2.ChatMessages(messages=messages)))


REFUSED: dict[str, tuple[inference_pb2.GenerateRequest, str, str]] = {
    "an id beyond the vocabulary": (
        ids(5, 1_000),
        "prompt.token_ids",
        "token id 1000 is outside the vocabulary; use ids from 0 to 999",
    ),
    "a prompt that fills the model": (ids(*range(100)), "prompt", "shorten the prompt"),
    "an answer that does not fit beside the prompt": (
        ids(*range(90), max_tokens=11),
        "sampling.max_tokens",
        "leaves 10",
    ),
    "an answer that fits beside no prompt": (text("x", max_tokens=100), "sampling.max_tokens", "leaves 99"),
    "more at least than fits beside the prompt": (
        ids(*range(90), min_tokens=11),
        "sampling.min_tokens",
        "min_tokens is 11.* leaves 10",
    ),
    "more at least than fits beside no prompt": (text("x", min_tokens=100), "sampling.min_tokens", "leaves 99"),
    "a chat with a role of its own": (chat("robot", "hi"), "prompt.chat", "use one of system"),
    "a chat without words": (chat("user", ""), "prompt.chat", "empty"),
    "an unknown field inside sampling": (
        inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(text="x"),
            sampling=common_pb2.SamplingParams.FromString(b"\xf8\x01\x01"),
        ),
        "sampling",
        "field number 31 of sampling",
    ),
}


UNKNOWN = b"\x78\x00"  # field number 15
STRANGE = common_pb2.ChatMessage.FromString(UNKNOWN)
MANY: dict[str, tuple[inference_pb2.GenerateRequest, str, str | None]] = {
    "empty messages": (chat_of(*[common_pb2.ChatMessage()] * 10_000), "10000 messages .* send at most", "prompt.chat"),
    "unknown fields": (inference_pb2.GenerateRequest.FromString(UNKNOWN * 10_000), "20000 bytes of fields", None),
    "messages with an unknown field": (chat_of(*[STRANGE] * 4_000), "bytes of fields that this release does not", None),
    "messages of which the last has an unknown field": (
        chat_of(*[common_pb2.ChatMessage(role="user", content="x")] * 4_000, STRANGE),
        "field number 15 of prompt.chat.messages",
        "prompt.chat.messages",
    ),
}


@pytest.mark.parametrize(("message", "words", "field"), MANY.values(), ids=MANY.keys())
def test_many_wrong_things_are_refused_by_their_number(
    message: inference_pb2.GenerateRequest, words: str, field: str | None
) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        checks("tiny").checked(message, request_id="r", remaining_seconds=None)
    assert raised.value.field == field


@pytest.mark.parametrize(("message", "field", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(message: inference_pb2.GenerateRequest, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        checks("tiny").checked(message, request_id="r", remaining_seconds=None)
    assert raised.value.field == field


MODELS: dict[str, tuple[tuple[str, ...], str, type[StreamServeError] | str]] = {
    "the one name may be left out": (("tiny",), "", "tiny"),
    "a served name": (("tiny", "small"), "small", "small"),
    "of several one must be named": (("tiny", "small"), "", UnknownModel),
    "a stranger": (("tiny",), "big", UnknownModel),
    "nothing is served yet": ((), "tiny", NotReady),
}


@pytest.mark.parametrize(("served", "name", "want"), MODELS.values(), ids=MODELS.keys())
def test_model(served: tuple[str, ...], name: str, want: type[StreamServeError] | str) -> None:
    if isinstance(want, str):
        assert checks(*served).model(name) == want
    else:
        with pytest.raises(want) as raised:
            checks(*served).model(name)
        assert all(each in raised.value.message for each in served)


def test_the_default_answer_is_what_the_model_leaves() -> None:
    request = checks("tiny").checked(ids(*range(60)), request_id="r", remaining_seconds=None)
    assert (request.max_tokens, request.sampling_message.max_tokens, request.prompt_estimated) == (40, 40, False)


def test_the_default_answer_is_never_shorter_than_the_least_that_is_asked_for() -> None:
    subject = checks("tiny", limits=ModelLimits(max_model_tokens=8_192, vocabulary_size=1_000))
    request = subject.checked(ids(1, 2, min_tokens=300), request_id="r", remaining_seconds=None)
    assert sampling.from_proto(request.sampling_message).max_tokens == request.max_tokens == 300
    assert subject.checked(text("x", min_tokens=300), request_id="r", remaining_seconds=None).max_tokens == 300


def test_text_is_estimated_and_never_refused_for_its_estimate() -> None:
    request = checks("tiny").checked(text("x" * 4_000), request_id="r", remaining_seconds=None)
    assert (request.prompt_tokens, request.prompt_estimated, request.max_tokens) == (1_000, True, 256)


def test_nothing_is_refused_for_length_while_no_worker_has_said_its_own() -> None:
    unknown = checks("tiny", limits=ModelLimits())
    assert unknown.checked(ids(4_000_000), request_id="r", remaining_seconds=None).max_tokens == 256


def test_the_limits_are_those_that_every_worker_keeps_and_no_worker_passes() -> None:
    lanes = [lane("a").model_length(4_096).vocabulary(512), lane("b").model_length(2_048).vocabulary(500)]
    silent = lane("c").model_length(0).vocabulary(0)
    assert limits_of(fleet(*lanes, silent)) == ModelLimits(max_model_tokens=2_048, vocabulary_size=512)
    assert limits_of(fleet(silent)) == limits_of(fleet()) == ModelLimits()


def test_deadlines() -> None:
    subject = checks("tiny")
    assert subject.checked(text("x"), request_id="r", remaining_seconds=2.0).deadline_seconds == 52.0
    for given in (None, 1e9):
        request = subject.checked(text("x"), request_id="r", remaining_seconds=given)
        assert request.deadline_seconds == 50.0 + MAX_DEADLINE_SECONDS
    with pytest.raises(DeadlineExceeded):
        subject.checked(text("x"), request_id="r", remaining_seconds=0.0)
    with pytest.raises(DeadlineExceeded):
        subject.checked(text("x"), request_id="r", remaining_seconds=0.000_9)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x00"])
def test_garbage_is_the_clients_fault(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="GenerateRequest"):
        checks("tiny").parsed(data)
