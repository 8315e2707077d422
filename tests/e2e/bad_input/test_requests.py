"""One table of requests that cannot be served: both fronts refuse them alike and say what to do.

gRPC: the status, its ErrorInfo reason and the field of BadRequest. OpenAI: the HTTP status, `code` and `param` of its
error object. The message is the same on both sides wherever the request has the same form in both.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from tests.support import calls
from tests.support.calls import request
from tests.support.processes import LocalFleet

from streamserve.v1 import common_pb2, inference_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
HTTP = {INVALID: 400, MISSING: 404}
REASON = {INVALID: "INVALID_REQUEST", MISSING: "UNKNOWN_MODEL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`grpc` or `openai` is None where the front has no such form. `says` stands in every message."""

    says: tuple[str, ...]
    grpc: inference_pb2.GenerateRequest | None = None
    openai: dict[str, Any] | str | None = None
    path: str = "/v1/completions"
    code: grpc.StatusCode = INVALID
    field: str = ""
    param: str | None = None


def chat(*messages: tuple[str, str]) -> inference_pb2.GenerateRequest:
    rows = [common_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    return inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(chat=common_pb2.ChatMessages(messages=rows)))


def body(**parameters: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hello", "max_tokens": 4, **parameters}


def sampling(says: str, name: str, value: Any) -> Case:
    return Case(
        grpc=request(**{name: value}),
        openai=body(**{name: value}),
        field=f"sampling.{name}",
        param=name,
        says=(f"{name} is", says),
    )


CHAT = "/v1/chat/completions"
CASES: dict[str, Case] = {
    "an empty text": Case(
        grpc=request(""), openai=body(prompt=""), field="prompt.text", param="prompt", says=("empty", "send")
    ),
    "an empty list of token ids": Case(
        grpc=request([]),
        openai=body(prompt=[]),
        field="prompt.token_ids",
        param="prompt",
        says=("empty", "send"),
    ),
    "no prompt at all": Case(
        grpc=inference_pb2.GenerateRequest(), openai={"model": "tiny"}, field="prompt", param="prompt", says=()
    ),
    "a chat without a word": Case(
        grpc=chat(("user", "")),
        openai={"messages": [{"role": "user", "content": ""}]},
        path=CHAT,
        field="prompt.chat",
        param="messages",
        says=("empty", "send"),
    ),
    "a role that nobody knows": Case(
        grpc=chat(("wizard", "hello")),
        openai={"messages": [{"role": "wizard", "content": "hello"}]},
        path=CHAT,
        field="prompt.chat",
        param="messages",
        says=("role 'wizard' is not known", "use one of system"),
    ),
    "a token id outside the vocabulary": Case(
        grpc=request([1, 2, 4_096], max_tokens=4),
        openai=body(prompt=[1, 2, 4_096]),
        field="prompt.token_ids",
        param="prompt",
        says=("token id 4096 is outside the vocabulary", "use ids from 0 to 4095"),
    ),
    "a prompt of token ids over the limit": Case(
        grpc=request([5] * 2_048),
        openai=body(prompt=[5] * 2_048),
        field="prompt",
        param="prompt",
        says=("the prompt has 2048 tokens", "shorten the prompt"),
    ),
    "a prompt of text over the limit": Case(
        grpc=request("x" * 4_000, max_tokens=4),
        openai=body(prompt="x" * 4_000),
        field="prompt",
        param="prompt",
        says=("the prompt has 4000 tokens", "send at most 2047"),
    ),
    "max_tokens 0": Case(
        grpc=request(max_tokens=0), openai=body(max_tokens=0), field="sampling.max_tokens", param="max_tokens", says=()
    ),
    "max_tokens over the model's length": Case(
        grpc=request([5] * 48, max_tokens=2_001),
        openai=body(prompt=[5] * 48, max_tokens=2_001),
        field="sampling.max_tokens",
        param="max_tokens",
        says=("max_tokens is 2001", "leaves 2000 after the prompt"),
    ),
    "max_tokens that a text prompt leaves no room for": Case(
        grpc=request("x" * 48, max_tokens=2_001),
        openai=body(prompt="x" * 48, max_tokens=2_001),
        field="sampling.max_tokens",
        param="max_tokens",
        says=("max_tokens is 2001", "ask for at most 2000"),
    ),
    "min_tokens above max_tokens": Case(
        grpc=request(max_tokens=4, min_tokens=5),
        openai=body(min_tokens=5),
        field="sampling.min_tokens",
        param="min_tokens",
        says=("min_tokens 5 is above max_tokens 4",),
    ),
    "min_tokens over the model's length": Case(
        grpc=request([5] * 48, min_tokens=2_001),
        openai={"model": "tiny", "prompt": [5] * 48, "min_tokens": 2_001},
        field="sampling.min_tokens",
        param="min_tokens",
        says=("min_tokens is 2001", "leaves 2000 after the prompt"),
    ),
    "min_tokens that a text prompt leaves no room for": Case(
        grpc=request("x" * 48, min_tokens=2_001),
        openai={"model": "tiny", "prompt": "x" * 48, "min_tokens": 2_001},
        field="sampling.min_tokens",
        param="min_tokens",
        says=("min_tokens is 2001", "ask for at most 2000"),
    ),
    "a temperature that is no number": sampling("use a number from 0 to 2", "temperature", float("nan")),
    "an infinite temperature": sampling("use a number from 0 to 2", "temperature", float("inf")),
    "a negative temperature": sampling("use a number from 0 to 2", "temperature", -0.5),
    "a temperature that an engine would raise": sampling("use 0 for greedy decoding, or at", "temperature", 0.009),
    "top_p of 0": sampling("use a number above 0 to 1", "top_p", 0.0),
    "min_p over 1": sampling("use a number from 0 to 1", "min_p", 1.5),
    "a presence penalty out of range": sampling("use a number from -2 to 2", "presence_penalty", 3.0),
    "a repetition penalty of 0": sampling("use a number above 0 to 2", "repetition_penalty", 0.0),
    "too many logprobs": sampling("use 0 to 20", "logprobs", 21),
    "too many stop strings": Case(
        grpc=request(stop=["."] * 17),
        openai=body(stop=["."] * 17),
        field="sampling.stop",
        param="stop",
        says=("17 stop strings", "at most 16"),
    ),
    "an empty stop string": Case(
        grpc=request(stop=[""]),
        openai=body(stop=""),
        field="sampling.stop",
        param="stop",
        says=("a stop string has 0 characters", "use 1 to 256"),
    ),
    "a model that is not served": Case(
        grpc=request(model="gpt-9"),
        openai=body(model="gpt-9"),
        code=MISSING,
        field="model",
        param="model",
        says=("model 'gpt-9' is not served here", "served: tiny"),
    ),
    "a workload name that is too long": Case(
        grpc=request(workload="w" * 33),
        openai=body(workload="w" * 33),
        field="workload",
        param="workload",
        says=("use at most 32",),
    ),
    "a priority out of range": Case(
        grpc=request(priority=11),
        openai=body(priority=11),
        field="priority",
        param="priority",
        says=("priority is 11", "use -10 to 10"),
    ),
    "several prompts in one request": Case(
        openai=body(prompt=["one", "two"]),
        param="prompt",
        says=("2 prompts in one request", "send one request for each"),
    ),
    "several lists of token ids in one request": Case(
        openai=body(prompt=[[1], [2]]), param="prompt", says=("2 prompts in one request", "send one request for each")
    ),
    "several answers to one prompt": Case(
        openai=body(n=2), param="n", says=("unsupported parameter: 'n'", "leave it out")
    ),
    "a parameter of OpenAI's that is not built": Case(
        openai=body(logit_bias={"5": 1}),
        param="logit_bias",
        says=("unsupported parameter: 'logit_bias'", "leave it out"),
    ),
    "a parameter that nobody knows": Case(
        openai=body(temprature=0.5), param="temprature", says=("unsupported parameter: 'temprature'", "leave it out")
    ),
    "tools in a chat": Case(
        openai={"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]},
        path=CHAT,
        param="tools",
        says=("unsupported parameter: 'tools'", "leave it out"),
    ),
    "an image in a chat": Case(
        openai={"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        path=CHAT,
        says=("messages.0.content: part 0 is not text",),
        param="messages.0.content",
    ),
    "a name beside a message": Case(
        openai={"messages": [{"role": "user", "content": "hi", "name": "Ann"}]},
        path=CHAT,
        param="messages.0.name",
        says=("unsupported parameter: 'messages.0.name'", "leave it out"),
    ),
    "half a token id": Case(
        openai=body(prompt=[1, 1.5]), param="prompt.1", says=("prompt.1: Input should be a valid integer",)
    ),
    "half a character": Case(openai='{"prompt": "\\ud800"}', says=("the body is no JSON",)),
    "brackets without end": Case(openai="[" * 100_000, says=("the body is no JSON",)),
    "a number where text belongs": Case(openai=body(model=5), param="model", says=("model:", "string")),
    "text where a number belongs": Case(
        openai=body(temperature="0.5"), param="temperature", says=("temperature:", "number")
    ),
    "a body that is no JSON": Case(openai="{'prompt': 1}", says=("the body is no JSON",)),
    "a body that is a list": Case(openai="[]", says=("must be a JSON object",)),
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.grpc is not None])
def test_grpc_refuses(name: str, fleet: LocalFleet) -> None:
    case = CASES[name]
    refused = calls.generate(fleet.grpc, case.grpc).error
    assert refused is not None
    assert (refused.code, refused.reason) == (case.code, REASON[case.code])
    assert refused.field == case.field
    assert all(part in refused.message for part in case.says), refused.message
    assert refused.retry_seconds is None, "the same request would fail again"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.openai is not None])
def test_openai_refuses(name: str, fleet: LocalFleet) -> None:
    case = CASES[name]
    status, headers, answer = post(fleet, case.path, case.openai)
    error = answer["error"]
    assert (status, error["code"]) == (HTTP[case.code], REASON[case.code].lower())
    assert error["type"] == "invalid_request_error"
    assert error["param"] == case.param
    assert all(part in error["message"] for part in case.says), error["message"]
    assert headers["x-request-id"]


def test_a_field_that_this_release_does_not_know_is_refused_by_number(fleet: LocalFleet) -> None:
    message = request()
    message.sampling.MergeFromString(bytes((0xA0, 0x06, 0x01)))  # field 100, a varint
    assert len(UnknownFieldSet(message.sampling)) == 1
    refused = calls.generate(fleet.grpc, message).error
    assert refused is not None
    assert (refused.code, refused.field) == (INVALID, "sampling")
    assert "unsupported parameter: field number 100 of sampling" in refused.message
    assert "leave it out" in refused.message


def test_nothing_that_was_refused_has_left_anything_running(fleet: LocalFleet) -> None:
    seen = calls.get_fleet(fleet.grpc)
    assert (seen.queued_requests, seen.running_requests) == (0, 0)
    answer = calls.generate(fleet.grpc, max_tokens=4, ignore_eos=True)
    assert answer.error is None
    assert len(answer.token_ids) == 4


def post(
    fleet: LocalFleet, path: str, content: dict[str, Any] | str | None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON). NaN and infinity are written as Python's json does, which OpenAI's client does too."""
    connection = http.client.HTTPConnection(fleet.router.ready["http"], timeout=20)
    try:
        data = content if isinstance(content, str) else json.dumps(content)
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    finally:
        connection.close()
