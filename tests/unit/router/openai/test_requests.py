"""What an OpenAI client may send, and how each refusal names what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from streamserve.contract import tokens
from streamserve.contract.errors import InvalidRequest
from streamserve.router.fronts.checks import MAX_CHAT_MESSAGES
from streamserve.router.fronts.openai import requests
from streamserve.v1 import common_pb2

MESSAGES = [{"role": "user", "content": "hello"}]

# name: (body beside what is required, the parameter that the refusal names, part of the message)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "two answers": ({"n": 2}, "n", "unsupported parameter: 'n'"),
    "a switch for a number of answers": ({"n": True}, "n", "unsupported parameter: 'n'"),
    "a fraction for a number of answers": ({"n": 1.0}, "n", "unsupported parameter: 'n'"),
    "a number for the switch of the echo": ({"echo": 0}, "echo", "unsupported parameter: 'echo'"),
    "the best of several": ({"best_of": 4}, "best_of", "unsupported"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "unsupported"),
    "a logit bias": ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
    "echo": ({"echo": True}, "echo", "unsupported"),
    "a suffix": ({"suffix": "end"}, "suffix", "unsupported"),
    "a name that nobody knows": ({"temprature": 1}, "temprature", "unsupported parameter: 'temprature'"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "a string for a number": ({"temperature": "hot"}, "temperature", "valid number"),
    "a fraction of a token": ({"max_tokens": 1.5}, "max_tokens", "integer"),
    "a number for a switch": ({"stream": 1}, "stream", "boolean"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, "", "stream: true"),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unsupported"),
    "a stop list of numbers": ({"stop": [1]}, "stop", "string"),
}


@pytest.mark.parametrize(("extra", "field", "text"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_refused(chat: bool, extra: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as raised:
        read(chat, extra)
    assert (raised.value.field or "").startswith(field)


ONLY_COMPLETION: dict[str, tuple[dict[str, Any], str]] = {
    "several prompts": ({"prompt": ["a", "b"]}, "2 prompts in one request"),
    "several token prompts": ({"prompt": [[1], [2]]}, "2 prompts in one request"),
    "a negative token id": ({"prompt": [-1]}, "negative or above"),
    "a token id over 32 bits": ({"prompt": [2**32]}, "negative or above"),
    "an object as prompt": ({"prompt": {}}, "prompt"),
    "no prompt": ({"prompt": None}, "prompt"),
}


@pytest.mark.parametrize(("extra", "text"), ONLY_COMPLETION.values(), ids=ONLY_COMPLETION.keys())
def test_refused_prompt(extra: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        read(False, extra)


MANY = 10_000
# name: (body, the parameter that the refusal names). Each takes about as long to refuse as its JSON to read.
WRONG_IN_MANY_PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "prompts that are none": ({"prompt": [None] * MANY}, "prompt.0"),
    "numbers that are no token ids": ({"prompt": [1, *[1.5] * MANY]}, "prompt.1"),
    "text among the token ids of a list": ({"prompt": [["x"] * MANY]}, "prompt.0"),
    "lists in the list of a list": ({"prompt": [[[]] * MANY]}, "prompt.0"),
    "stop numbers": ({"prompt": "x", "stop": [0] * MANY}, "stop.0"),
    "names that nobody knows": ({"prompt": "x"} | {f"x{n}": 0 for n in range(MANY)}, "x0"),
    "stream options that nobody knows": (
        {"prompt": "x", "stream": True, "stream_options": {f"x{n}": 0 for n in range(MANY)}},
        "stream_options.x0",
    ),
    "messages that are none": ({"messages": [{}] * MANY}, "messages.0.role"),
    "messages of numbers": ({"messages": [{"role": 0, "content": 0}] * MANY}, "messages.0.role"),
    "more messages than one may send": ({"messages": MESSAGES * MANY}, "messages"),
    "a message with names that nobody knows": (
        {"messages": [MESSAGES[0] | {f"x{n}": 0 for n in range(MANY)}]},
        "messages.0.x0",
    ),
    "parts that are none": ({"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages.0.content"),
    "a part with names that nobody knows": (
        {"messages": [{"role": "user", "content": [{f"x{n}": 0 for n in range(MANY)}]}]},
        "messages.0.content",
    ),
}


@pytest.mark.parametrize(("body", "field"), WRONG_IN_MANY_PLACES.values(), ids=WRONG_IN_MANY_PLACES.keys())
def test_of_many_wrong_things_few_are_written_down(body: dict[str, Any], field: str) -> None:
    read_body = requests.chat_completion if "messages" in body else requests.completion
    with pytest.raises(InvalidRequest) as raised:
        read_body(json.dumps(body).encode())
    assert raised.value.field == field
    recorded = raised.value.__context__
    assert isinstance(recorded, ValidationError)
    assert recorded.error_count() <= len(requests.ChatCompletionRequest.model_fields)


def test_as_many_messages_and_parts_as_one_may_send_are_read() -> None:
    parts = [{"type": "text", "text": "ab"}] * MANY
    assert read(True, {"messages": [{"role": "user", "content": parts}]}).prompt.chat.messages[0].content == "ab" * MANY
    assert len(read(True, {"messages": MESSAGES * MAX_CHAT_MESSAGES}).prompt.chat.messages) == MAX_CHAT_MESSAGES


ONLY_CHAT: dict[str, tuple[dict[str, Any], str]] = {
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    "a part with another name": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
        "part 0 is not text: send .* no other names",
    ),
    "a misspelt name in a message": ({"messages": [{"role": "user", "contents": "x"}]}, "'messages.0.contents'"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a tool's call in a message": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages.0.tool_calls",
    ),
    "a name in a message": ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
    "two different limits": ({"max_tokens": 3, "max_completion_tokens": 4}, "send one of them"),
    "top_logprobs alone": ({"top_logprobs": 3}, "needs logprobs"),
}


@pytest.mark.parametrize(("extra", "text"), ONLY_CHAT.values(), ids=ONLY_CHAT.keys())
def test_refused_chat(extra: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        read(True, extra)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"prompt": "\xff"}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        requests.completion(body)


def test_the_values_that_change_nothing_are_accepted() -> None:
    neutral = {name: values[0] for name, values in requests.UNUSED.items() if values}
    assert read(True, neutral) == read(True, dict.fromkeys(requests.UNUSED)) == read(True, {})


def test_every_sampling_parameter_reaches_the_message() -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "seed": 42,
        "stop": ["a", "b"],
        "max_tokens": 9,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    extra = {"workload": "code", "priority": 3, "user": "someone", "model": "tiny"}
    message = read(False, given | extra | {"logprobs": 4})
    assert {field.name for field, _ in message.sampling.ListFields()} == {*given, "logprobs"}
    assert (message.sampling.top_k, message.sampling.seed, list(message.sampling.stop)) == (7, 42, ["a", "b"])
    assert (message.workload, message.priority, message.model) == ("code", 3, "tiny")


def test_user_is_accepted_and_changes_nothing() -> None:
    assert read(False, {"user": "someone"}) == read(False, {})
    assert read(True, {"user": "someone"}) == read(True, {})


def test_the_forms_of_a_prompt() -> None:
    assert read(False, {"prompt": "text"}).prompt.text == "text"
    assert read(False, {"prompt": ["alone"]}).prompt.text == "alone"
    for prompt in ([1, 2], [[1, 2]]):
        assert list(tokens.unpack(read(False, {"prompt": prompt}).prompt.token_ids.ids_le32)) == [1, 2]


def test_text_parts_are_joined_and_chat_logprobs_become_a_count() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = read(
        True,
        {"messages": [{"role": "user", "content": parts}], "logprobs": True, "top_logprobs": 2, "top_k": -1},
    )
    assert message.prompt.chat.messages[0] == common_pb2.ChatMessage(role="user", content="ab")
    assert (message.sampling.logprobs, message.sampling.top_k) == (2, 0)


def read(chat: bool, extra: dict[str, Any]) -> Any:
    if chat:
        return requests.chat_completion(json.dumps({"messages": MESSAGES} | extra).encode()).to_message()
    return requests.completion(json.dumps({"prompt": "hello"} | extra).encode()).to_message()


def test_an_answer_comes_back_as_the_past_of_the_next_question_as_clients_write_it() -> None:
    """`choices[0].message.model_dump()` of OpenAI's own client."""
    unused = ("refusal", "annotations", "audio", "function_call", "tool_calls")
    answer = {"role": "assistant", "content": "hi"} | dict.fromkeys(unused)
    chat = read(True, {"messages": [*MESSAGES, answer, *MESSAGES]}).prompt.chat
    assert [(message.role, message.content) for message in chat.messages] == [
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "hello"),
    ]
