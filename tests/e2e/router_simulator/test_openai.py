"""The OpenAI front, used through OpenAI's own client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.support import calls
from tests.support.processes import LocalFleet, wait_until

from streamserve.worker.pipeserve.simulated_tokens import decode, encode, expected_token, render_chat

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def want(prompt: str, count: int) -> str:
    ids = encode(prompt, 4_096)
    return decode(expected_token(ids, position) for position in range(count))


@pytest.fixture
def client(fleet: LocalFleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.http}/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="once upon a time", max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == want("once upon a time", 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (16, 12)


def test_completion_from_token_ids(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=list(b"once"), max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == want("once", 5)


def test_streamed_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt="once",
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    events = list(stream)
    assert "".join(choice.text for event in events for choice in event.choices) == want("once", 20)
    assert len(events) > 3
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 20
    assert all(event.usage is None for event in events[:-1])


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=12, extra_body={"ignore_eos": True}
    )
    prompt = render_chat([(message["role"], message["content"]) for message in MESSAGES])
    assert answer.choices[0].message.content == want(prompt, 12)
    assert answer.choices[0].message.role == "assistant"


def test_streamed_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, stream=True, extra_body={"ignore_eos": True}
    )
    events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    prompt = render_chat([(message["role"], message["content"]) for message in MESSAGES])
    assert "".join(event.choices[0].delta.content or "" for event in events) == want(prompt, 12)
    assert events[-1].choices[0].finish_reason == "length"


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 4
    assert "".join(row.token for row in logprobs.content) == answer.choices[0].message.content
    assert all(row.bytes == list(row.token.encode()) for row in logprobs.content)
    assert all(len(row.top_logprobs) == 2 for row in logprobs.content)
    assert all(row.top_logprobs[0].token == row.token for row in logprobs.content)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_logprobs_of_a_completion_say_where_each_token_stands(client: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "tiny", "prompt": "The tide", "max_tokens": 12, "logprobs": 1, "extra_body": {"ignore_eos": True}}
    answers = list(client.completions.create(**asked, stream=True)) if stream else [client.completions.create(**asked)]
    text = "".join(answer.choices[0].text for answer in answers)
    told = [answer.choices[0].logprobs for answer in answers if answer.choices[0].logprobs]
    tokens = [token for one in told for token in one.tokens]
    offsets = [offset for one in told for offset in one.text_offset]
    assert len(tokens) == len(offsets) == 12
    assert all(text.startswith(token, offset) for token, offset in zip(tokens, offsets, strict=True))
    assert [token for one in told for token in one.top_logprobs] == [{token: -0.105} for token in tokens]


def test_refusals_have_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="tiny", prompt="x", n=2)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=9)
    with pytest.raises(openai.NotFoundError, match="served: tiny"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.completions.create(model="tiny", prompt="")


def test_the_request_id_goes_in_and_out(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="x", max_tokens=2, extra_headers={"x-request-id": "mine-2"}
    )
    assert raw.headers["x-request-id"] == "mine-2"
    assert raw.parse().id == "cmpl-mine-2"


def test_a_deadline_in_the_header_is_kept(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.completions.create(
            model="tiny", prompt="x", max_tokens=3_000, extra_headers={"x-request-timeout-ms": "60"}
        )
    assert raised.value.status_code in (504, 429)


def test_a_body_over_the_limit_is_refused(fleet: LocalFleet) -> None:
    status, body, _ = post(fleet, "/v1/completions", b"x" * (17 << 20))
    assert status == 413
    assert json.loads(body)["error"]["code"] == "body_too_large"


def test_an_unknown_path_and_a_wrong_method_have_openais_shape(fleet: LocalFleet) -> None:
    status, body, _ = post(fleet, "/v1/embeddings", b"{}")
    assert status == 404
    assert "/v1/chat/completions" in json.loads(body)["error"]["message"]
    status, _, _ = post(fleet, "/v1/models", b"{}")
    assert status == 405


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/"])
def test_a_trailing_slash_changes_nothing(fleet: LocalFleet, path: str) -> None:
    """A redirect would lose the body: clients do not repeat a POST."""
    status, body, _ = post(fleet, path, json.dumps({"prompt": "x", "max_tokens": 3}).encode())
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 3


def test_every_path_may_end_in_a_slash(fleet: LocalFleet) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 3}).encode()
    assert post(fleet, "/v1/chat/completions/", body)[0] == 200
    with urllib.request.urlopen(f"{fleet.http}/v1/models/", timeout=5) as response:
        assert [row["id"] for row in json.load(response)["data"]] == ["tiny"]
    status, answer, _ = post(fleet, "/v1/embeddings/", b"{}")
    assert status == 404
    assert "/v1/embeddings is not served" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_the_reason_stop_and_is_not_part_of_the_text(client: openai.OpenAI, stream: bool) -> None:
    whole = want("once", 40)
    answer = client.completions.create(
        model="tiny", prompt="once", max_tokens=40, stop=whole[12:15], stream=stream, extra_body={"ignore_eos": True}
    )
    events = list(answer) if stream else [answer]
    choices = [choice for event in events for choice in event.choices]
    assert "".join(choice.text for choice in choices) == whole[: whole.index(whole[12:15])]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]


def test_a_streamed_chat_gives_its_usage_last_when_it_is_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    events = list(stream)
    prompt = render_chat([(message["role"], message["content"]) for message in MESSAGES])
    assert events[-1].choices == []
    assert events[-1].usage is not None
    usage = events[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(encode(prompt, 4_096)), 12)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert all(event.usage is None for event in events[:-1])
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert len({event.id for event in events}) == 1


def test_without_being_asked_a_stream_says_nothing_of_usage(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=3, stream=True)
    assert all("usage" not in event.model_fields_set for event in stream)


def test_a_deadline_that_passes_in_a_stream_is_an_error_of_the_client_not_a_short_answer(
    client: openai.OpenAI,
) -> None:
    # Without `ignore_eos` nobody knows that the answer will be too long: with it, the request is refused at once.
    stream = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=3_000,
        stream=True,
        extra_headers={"x-request-timeout-ms": "900"},
    )
    with pytest.raises(openai.APIError) as raised:
        list(stream)
    assert raised.value.code == "deadline_exceeded"
    assert raised.value.type == "server_error"


def test_refusals_are_the_clients_own_errors_by_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[{"type": "function"}])  # type: ignore[list-item]
    assert (chat.value.param, chat.value.type) == ("tools", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert unknown.value.code == "unknown_model"
    with pytest.raises(openai.BadRequestError) as alone:
        client.completions.create(model="tiny", prompt="x", stream_options={"include_usage": True})  # type: ignore[call-overload]
    assert "stream" in alone.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 100_000)
    assert long.value.type == "invalid_request_error"


def test_a_stream_ends_with_done(fleet: LocalFleet) -> None:
    status, body, headers = post(
        fleet, "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 3, "stream": True}).encode()
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_both_workers(fleet: LocalFleet, stream: bool) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 3_000, "ignore_eos": True, "stream": stream}).encode()
    host, port = fleet.router.ready["http"].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(lambda: calls.get_fleet(fleet.grpc).running_requests == 1, seconds=5, what="the request runs")
    wait_until(lambda: calls.get_fleet(fleet.grpc).running_requests == 0, seconds=5, what="the request is over")


def post(fleet: LocalFleet, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(fleet.router.ready["http"], timeout=20)
    try:
        connection.putrequest("POST", path)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        # The answer may come before the body is through.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(body)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()
