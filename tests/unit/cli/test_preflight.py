"""What is refused before anything starts, and that each refusal says what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from streamserve.cli.errors import Refused
from streamserve.cli.up import preflight
from streamserve.cli.up import redis as local_redis
from streamserve.cli.up.ports import free_port, settled
from streamserve.cli.up.preflight import Facts, ModelFacts, problems
from streamserve.contract.streampair import StreamPair

MakePair = Callable[..., StreamPair]
GB = 10**9
TARGET = ModelFacts(name="target", folder=Path("/m/target"), vocabulary_size=4096, tokenizer="aa")
DRAFT = ModelFacts(name="draft", folder=Path("/m/draft"), vocabulary_size=4096, tokenizer="aa")
GOOD = Facts(
    system="Linux",
    machine="x86_64",
    vllm="0.32.0",
    cpu_engines=True,
    free_bytes=20 * GB,
    model=TARGET,
    draft=DRAFT,
)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a machine that has everything": ({}, {}, ()),
    "another system names the simulator": (
        {},
        {"system": "Darwin", "machine": "arm64"},
        ("this is Darwin arm64: add --engine Simulator",),
    ),
    "another processor names the simulator": ({}, {"machine": "aarch64"}, ("--engine Simulator",)),
    "the simulator runs anywhere": (
        {"spec.engine.kind": "Simulator"},
        {"system": "Darwin", "machine": "arm64", "vllm": ""},
        (),
    ),
    "no vLLM says make env": ({}, {"vllm": ""}, ("run `make env`",)),
    "a missing model folder": (
        {},
        {"model": ModelFacts(name="x", folder=Path("/m/x"), exists=False)},
        ("spec.model.name: /m/x is no model folder",),
    ),
    "a missing draft folder": (
        {},
        {"draft": ModelFacts(name="x", folder=Path("/m/x"), exists=False)},
        ("spec.speculation.draft.name: /m/x is no model folder",),
    ),
    "a draft of another vocabulary": (
        {},
        {"draft": replace(DRAFT, vocabulary_size=32000)},
        ("draft has a vocabulary of 32000 tokens, target of 4096",),
    ),
    "a draft of another tokenizer": ({}, {"draft": replace(DRAFT, tokenizer="bb")}, ("gives other ids",)),
    "a hub draft is left to the engine": ({}, {"draft": ModelFacts(name="org/draft")}, ()),
    "a port in use": (
        {},
        {"ports": {"--grpc": "127.0.0.1:50051 is in use", "--http": ""}},
        ("--grpc: 127.0.0.1:50051 is in use",),
    ),
    "too little memory says how many lanes fit": (
        {"spec.lanes": 4},
        {"free_bytes": 15 * GB},
        ("too little memory for 4 lanes: 2 Vllm engines a lane take about 3.2 GB each, 25.6 GB more, and 15.0 GB are "
         "free; 2 lanes fit: set spec.lanes (or --lanes) to 2",),
    ),
    "too little for one": (
        {"spec.lanes": 1},
        {"free_bytes": 5 * GB},
        ("not even one lane fits: free 6.4 GB, or add --engine Simulator",),
    ),
    "replicas count": (
        {"spec.lanes": 1, "spec.decode.replicas": 3},
        {"free_bytes": 10 * GB},
        ("4 Vllm engines a lane",),
    ),
    "engines on a GPU are not judged by the machine's memory": (
        {"spec.lanes": 50},
        {"cpu_engines": False},
        (),
    ),
    "several problems are told together": (
        {},
        {"vllm": "", "ports": {"--grpc": "busy", "--http": "busy"}},
        ("make env", "--grpc: busy", "--http: busy"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_problems(name: str, make_pair: MakePair) -> None:
    edits, facts, want = CASES[name]
    found = problems(make_pair(edits), replace(GOOD, **facts))
    assert len(found) == len(want)
    for text, part in zip(found, want, strict=True):
        assert part in text


def test_running_engines_count_as_placed(make_pair: MakePair) -> None:
    pair = make_pair({"spec.lanes": 3})
    assert preflight.memory_problem(pair, 7 * GB, True, running_engines=4) == ""
    assert "2 lanes fit" in preflight.memory_problem(pair, 4 * GB, True, running_engines=4)


def test_a_port_that_somebody_listens_on_is_in_use() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        assert "is in use" in preflight.port_problem("--grpc", address)
        assert "choose another with --grpc" in preflight.port_problem("--grpc", address)
    assert preflight.port_problem("--grpc", address) == ""
    assert preflight.port_problem("--grpc", "127.0.0.1:0") == ""
    assert "a..b is no name of a host" in preflight.port_problem("--grpc", "a..b:1")


@pytest.mark.parametrize("address", ["50051", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", ":1"])
def test_what_is_no_address_is_said_so(address: str) -> None:
    assert "is no address: write host:port" in preflight.port_problem("--grpc", address)


@pytest.fixture
def port() -> int:
    return free_port(Random(5))


SHARED = {
    "the same address": ("127.0.0.1:PORT", "127.0.0.1:PORT", True),
    "a name of the same address": ("localhost:PORT", "127.0.0.1:PORT", True),
    "every address and one of them": ("0.0.0.0:PORT", "127.0.0.1:PORT", True),
    "another host": ("127.0.0.1:PORT", "127.0.0.2:PORT", False),
    "any free port": ("127.0.0.1:0", "127.0.0.1:0", False),
}


@pytest.mark.parametrize(("grpc", "http", "shared"), SHARED.values(), ids=SHARED)
def test_two_options_may_not_have_one_address(
    grpc: str, http: str, shared: bool, port: int, make_pair: MakePair
) -> None:
    grpc, http = grpc.replace("PORT", str(port)), http.replace("PORT", str(port))
    facts = preflight.gather(make_pair(), {"--grpc": grpc, "--http": http, "--metrics": "127.0.0.1:0"})
    found = problems(make_pair(), replace(GOOD, ports=facts.ports))
    wanted = f"--http: {http} is what --grpc {grpc} has: choose another port for one of them; port 0 takes any free one"
    assert found == ((wanted,) if shared else ())


def test_every_address_of_both_families_holds_each_of_either() -> None:
    """A machine need not have the other family for that to be said."""
    assert preflight._overlap("127.0.0.1:8000", "[::]:8000")
    assert not preflight._overlap("127.0.0.1:8000", "[::]:8001")


def test_the_metrics_address_is_no_exception(port: int, make_pair: MakePair) -> None:
    address = f"127.0.0.1:{port}"
    facts = preflight.gather(make_pair(), {"--grpc": address, "--http": address, "--metrics": address})
    assert [option for option, trouble in facts.ports.items() if trouble] == ["--http", "--metrics"]


def test_a_model_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 77}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": None}))
    first = preflight.model_facts(str(tmp_path))
    assert (first.exists, first.vocabulary_size) == (True, 77)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": {"x": 1}}))
    assert preflight.model_facts(str(tmp_path)).tokenizer == first.tokenizer != ""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    assert preflight.model_facts(str(tmp_path)).tokenizer != first.tokenizer


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"vocab_size": "many"}', "null"])
def test_a_garbled_model_folder_is_left_to_the_engine(tmp_path: Path, garbage: str) -> None:
    (tmp_path / "config.json").write_text(garbage)
    (tmp_path / "tokenizer.json").write_text(garbage)
    facts = preflight.model_facts(str(tmp_path))
    assert facts.exists
    assert facts.vocabulary_size is None


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:6379", "http://localhost", "redis://", "redis://h:port/0", "redis://[::1"),
        *("redis://h:6379/x", "redis://h:6379/0?db=zz", "redis://h:6379/0?socket_timeout=abc"),
    ],
)
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="--redis"):
        local_redis.external(url)


def test_a_redis_url_shows_no_password() -> None:
    endpoint = local_redis.external("redis://:secret@example.org:7000/0")
    assert endpoint.address == "example.org:7000"
    assert "secret" not in repr(endpoint)


async def test_an_unreachable_redis_is_refused_with_advice() -> None:
    endpoint = local_redis.external(f"redis://127.0.0.1:{free_port(Random(3))}")
    with pytest.raises(Refused, match=r"cannot be reached .* correct --redis"):
        await local_redis.check(endpoint)


def test_port_0_is_settled_below_the_ephemeral_range() -> None:
    [one] = settled(["127.0.0.1:0"], Random(1))
    assert 20_000 <= int(one.rpartition(":")[2]) < 30_000
    assert settled(["127.0.0.1:50051"], Random(1)) == ["127.0.0.1:50051"]


def test_no_port_is_settled_twice() -> None:
    [drawn] = settled(["127.0.0.1:0"], Random(1))
    two = settled(["127.0.0.1:0", drawn], Random(1))
    assert two[1] == drawn
    assert two[0] != drawn

    class Repeats(Random):
        """Draws every number twice."""

        numbers = iter([number for number in range(25_000, 25_200) for _ in range(2)])

        def randint(self, a: int, b: int) -> int:
            return next(self.numbers)

    assert len(set(settled(["127.0.0.1:0", "127.0.0.1:0"], Repeats()))) == 2
