"""Using what `up` started: one prompt, the tools, live edits of hot and refused fields."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import urllib.request
from collections.abc import Callable
from typing import Any

import redis

from streamserve.contract import runtime_config, signals
from streamserve.contract.keys import Keyspace

Cli = Callable[..., Any]


def test_the_ready_file_names_what_listens(shared: Any) -> None:
    ready = shared.ready
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", ready[key]) for key in ("grpc", "http", "redis"))
    assert ready["pid"] == shared.pid
    assert shared.all_ready(2)


def test_up_itself_tells_its_health_and_its_figures(shared: Any) -> None:
    def ask(path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://{shared.ready['metrics']}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()

    assert ask("/healthz") == (200, "ok\n")
    assert ask("/readyz") == (200, "ok\n")
    text = ask("/metrics")[1]
    assert 'streamserve_up_children{state="up"} 6.0' in text
    assert "streamserve_up_ready_lanes 2.0" in text


def test_generate_streams_text_and_tells_figures_on_stderr(shared: Any, cli: Cli) -> None:
    done = cli("generate", "--server", shared.ready["grpc"], "--max-tokens", "24", "--ignore-eos", "Hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert re.search(r"^lane-\d · 24 tokens · TTFT \d+ ms · TPOT [\d.]+ ms · depths ", done.stderr)


def test_generate_json_has_every_position_once(shared: Any, cli: Cli) -> None:
    done = cli("generate", "--server", shared.ready["grpc"], "--json", "--max-tokens", "50", "--ignore-eos", "Hello")
    chunks = [json.loads(line) for line in done.stdout.splitlines()]
    position = 0
    for chunk in chunks:
        assert chunk["first_token_index"] == position
        position += len(chunk["token_ids"])
    assert position == 50
    assert chunks[0]["route"]["prefill_mode"] == "remote"
    assert chunks[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 50
    assert not any("finish_reason" in chunk for chunk in chunks[:-1])


def test_a_request_that_cannot_be_served_is_one_line(shared: Any, cli: Cli) -> None:
    done = cli("generate", "--server", shared.ready["grpc"], "--model", "other", "Hello")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not served here; served: tiny (NOT_FOUND)" in done.stderr


def test_explain_shows_every_candidate(shared: Any, cli: Cli) -> None:
    done = cli("explain", "--server", shared.ready["grpc"], "--prompt-tokens", "100", "--json")
    found = json.loads(done.stdout)
    assert {candidate["lane"] for candidate in found["candidates"]} == {"lane-0", "lane-1"}
    assert all(candidate["terms"] for candidate in found["candidates"])
    table = cli("explain", "--server", shared.ready["grpc"], "--prompt-tokens", "100").stdout
    assert "is chosen" in table
    assert "signal age" in table


def test_top_once_shows_every_worker(shared: Any, cli: Cli) -> None:
    table = cli("top", "--once", "--server", shared.ready["grpc"]).stdout
    assert table.count("prefill-0") == table.count("decode-0") == 2


def test_a_hot_edit_is_acknowledged_by_everyone_and_seen_by_the_next_request(shared: Any, cli: Cli) -> None:
    before = shared.edit("depth: {min: 1, max: 6}", "depth: {min: 0, max: 0}")
    line = shared.line("applied generation", "on 5 of 5", after=before, seconds=10)
    assert line.endswith("spec.speculation.depth.min 1 → 0, spec.speculation.depth.max 6 → 0")
    assert int(re.search(r"in (\d+) ms", line)[1]) <= 2000  # type: ignore[index]
    done = cli("generate", "--server", shared.ready["grpc"], "--json", "--max-tokens", "20", "Hello")
    assert json.loads(done.stdout.splitlines()[-1])["usage"]["depths_seen"] == [0]
    before = shared.edit("depth: {min: 0, max: 0}", "depth: {min: 1, max: 6}", in_place=True)
    shared.line("applied generation", "on 5 of 5", after=before, seconds=10)


def test_the_echo_is_in_the_signals_and_the_file(shared: Any) -> None:
    before = shared.edit("ttftMilliseconds: 2000", "ttftMilliseconds: 1900")
    line = shared.line("applied generation", "ttftMilliseconds 2000 → 1900", after=before, seconds=10)
    generation = int(re.search(r"generation (\d+)", line)[1])  # type: ignore[index]
    with open(shared.ready["redis_url_file"]) as file:
        client = redis.Redis.from_url(file.read())
    keys = Keyspace("local", "tiny")
    for worker in ("lane-0-prefill-0", "lane-0-decode-0", "lane-1-prefill-0", "lane-1-decode-0"):
        value = client.get(keys.worker_signals(worker))
        assert isinstance(value, bytes)
        assert signals.decode(value).config_generation == generation
    stored = client.get(keys.config)
    assert isinstance(stored, bytes)
    assert runtime_config.decode(stored).slo.ttft_ms == 1900
    client.close()


def test_an_invalid_edit_keeps_the_last_good_one_and_says_why_with_line_and_suggestion(shared: Any, cli: Cli) -> None:
    before = shared.edit("depth: {min: 1, max: 6}", "depht: {min: 1, max: 6}")
    shared.line("the edit is refused", "stays in force", after=before, seconds=10)
    line = shared.line("spec.speculation.depht: unknown field", after=before)
    assert re.search(r"streampair\.yaml:\d+:\d+: .*did you mean .*depth", line)
    assert cli("generate", "--server", shared.ready["grpc"], "--max-tokens", "4", "Hello").returncode == 0
    before = shared.edit("depht: {min: 1, max: 6}", "depth: {min: 1, max: 6}")
    shared.line("no setting has changed", after=before)


def test_broken_yaml_keeps_the_last_good_one(shared: Any) -> None:
    before = shared.edit("spec:\n  model:", "spec: [\n  model:")
    shared.line("the edit is refused", after=before, seconds=10)
    before = shared.edit("spec: [\n  model:", "spec:\n  model:")
    shared.line("no setting has changed", after=before)


def test_a_fixed_field_is_refused(shared: Any) -> None:
    before = shared.edit("name: tiny  ", "name: huge  ")
    shared.line("metadata.name tiny → huge: cannot be changed while it runs", after=before, seconds=10)
    before = shared.edit("name: huge  ", "name: tiny  ")
    shared.line("no setting has changed", after=before)


def test_fifty_hot_edits_under_load_disturb_nobody(shared: Any, stream: Any) -> None:
    async def body() -> list[int]:
        took = []
        async with stream(shared.ready["grpc"]) as load:
            for i in range(50):
                on, off = "depth: {min: 1, max: 6}", "depth: {min: 0, max: 0}"
                old, new = (on, off) if i % 2 == 0 else (off, on)
                before = shared.edit(old, new)
                line = await asyncio.to_thread(shared.line, "applied generation", after=before, seconds=10)
                assert "on 5 of 5" in line
                took.append(int(re.search(r"in (\d+) ms", line)[1]))  # type: ignore[index]
        assert load.failures == []
        assert load.answered > 20
        return took

    took = asyncio.run(body())
    assert statistics.median(took) <= 300, sorted(took)
    assert max(took) <= 2000, sorted(took)
