"""What `generate` sends and prints."""

from __future__ import annotations

import argparse
import io
import json
from typing import Any

import pytest

from streamserve.cli import generate
from streamserve.cli.main import main
from streamserve.v1 import common_pb2, inference_pb2


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    generate.add_parser(parser.add_subparsers(dest="command"))
    return parser.parse_args(["generate", *words])


def test_a_prompt_goes_as_raw_text_and_what_is_not_given_stays_absent() -> None:
    request = generate.build_request(arguments("hello"), "hello")
    assert request == inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text="hello"), sampling=common_pb2.SamplingParams()
    )
    assert not request.sampling.HasField("temperature")


def test_chat_goes_as_one_message_of_the_user() -> None:
    request = generate.build_request(arguments("--chat", "hello"), "hello")
    assert [(m.role, m.content) for m in request.prompt.chat.messages] == [("user", "hello")]


def test_every_option_is_sent() -> None:
    words = ["--max-tokens", "0", "--temperature", "0", "--ignore-eos", "--model", "m", "--workload", "w", "x"]
    request = generate.build_request(arguments(*words), "x")
    assert request.sampling.HasField("max_tokens")
    assert (request.sampling.max_tokens, request.sampling.temperature) == (0, 0.0)
    assert request.sampling.ignore_eos
    assert (request.model, request.workload) == ("m", "w")


ROUTE = {"lane": "lane-0", "prefill_worker": "p", "decode_worker": "d", "prefill_mode": "remote"}
CHUNKS: dict[str, tuple[inference_pb2.GenerateResponse, dict[str, Any]]] = {
    "a chunk in the middle has no more than its tokens": (
        inference_pb2.GenerateResponse(attempt=2, first_token_index=5, token_ids=[7, 8], text="é"),
        {"attempt": 2, "first_token_index": 5, "token_ids": [7, 8], "text": "é"},
    ),
    "the first chunk names the route": (
        inference_pb2.GenerateResponse(attempt=1, token_ids=[7], text="a", route=inference_pb2.Route(**ROUTE)),
        {"attempt": 1, "first_token_index": 0, "token_ids": [7], "text": "a", "route": ROUTE},
    ),
    "the last chunk tells everything": (
        inference_pb2.GenerateResponse(
            attempt=1,
            first_token_index=9,
            finish_reason=common_pb2.FINISH_REASON_LENGTH,
            usage=common_pb2.Usage(
                prompt_tokens=3,
                completion_tokens=9,
                drafted_tokens=8,
                accepted_tokens=4,
                depths_seen_mask=0b1001001,
                kv_transfer_bytes=1024,
            ),
        ),
        {
            "attempt": 1,
            "first_token_index": 9,
            "token_ids": [],
            "text": "",
            "route": ROUTE,
            "finish_reason": "length",
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 9,
                "cached_prompt_tokens": 0,
                "drafted_tokens": 8,
                "accepted_tokens": 4,
                "depths_seen": [0, 3, 6],
                "kv_transfer_bytes": 1024,
            },
        },
    ),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_json_line(name: str) -> None:
    chunk, want = CHUNKS[name]
    assert generate.chunk_object(chunk, ROUTE) == want
    assert json.loads(json.dumps(want)) == want


def test_the_figures_at_the_end() -> None:
    clock = generate._Clock(started=10.0)
    for tokens, now in ((1, 10.084), (0, 10.09), (4, 10.1), (5, 10.129)):
        clock.saw(tokens, now)
    usage = generate.describe_usage(common_pb2.Usage(drafted_tokens=8, accepted_tokens=4, depths_seen_mask=0b11))
    assert generate.summary(clock, ROUTE, usage) == (
        "lane-0 · 10 tokens · TTFT 84 ms · TPOT 5.0 ms · depths 0 1 · 4 of 8 drafts accepted"
    )


def test_nobody_listening_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--server", "127.0.0.1:1", "hi"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "streamserve: nothing answers at 127.0.0.1:1: is `streamserve up` running? --server names another address"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "nowhere", "x"], "is no address: write host:port"),
        (["--timeout", "0", "x"], "--timeout must be above 0"),
        (["--timeout", "nan", "x"], "--timeout must be above 0"),
        (["--timeout", "inf", "x"], "--timeout must be above 0 seconds, and at most 86400"),
        (["--server", "a..b:1", "x"], "--server a..b:1: a..b is no name of a host"),
        (["\udcff"], "have to be UTF-8 text"),
        (["--model", "\udcff", "x"], "have to be UTF-8 text"),
        (["--max-tokens", "-1", "x"], "--max-tokens -1 is no count"),
    ],
)
def test_a_bad_option_is_refused_at_once(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_piped_prompt_that_is_not_utf8_is_refused(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors=errors))
    assert main(["generate", "-"]) == 2
    assert capsys.readouterr().err == (
        "streamserve: a prompt, --model and --workload have to be UTF-8 text; convert it, as with `iconv`\n"
    )
