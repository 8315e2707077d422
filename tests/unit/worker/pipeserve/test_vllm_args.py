"""A StreamPair's engine arguments as words of vLLM's command line; the parser here has one flag of each kind."""

from __future__ import annotations

import argparse
import json

import pytest

from streamserve.contract.streampair import flags
from streamserve.runtime.errors import SetupError
from streamserve.worker.pipeserve import vllm_args


def known() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--compilation-config", type=json.loads)
    parser.add_argument("--cudagraph-capture-sizes", type=int, nargs="+")
    parser.add_argument("--a-pair", nargs=2)
    parser.add_argument("--maybe", nargs="?", const=True)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    parser.add_argument("--log-more", action="store_true")
    parser.add_argument("--data-parallel-size", type=int)
    return {name: action for action in parser._actions for name in action.option_strings}


# name: (what is written, what vLLM's parser reads)
TAKEN: dict[str, tuple[dict[str, str], list[str]]] = {
    "a value": ({"max-num-seqs": "8"}, ["--max-num-seqs=8"]),
    "a value that looks like a flag": ({"dtype": "--model"}, ["--dtype=--model"]),
    "a value below zero with a dot": ({"dtype": "-0.5"}, ["--dtype=-0.5"]),
    "JSON in one piece": ({"compilation-config": '{"mode": 0}'}, ['--compilation-config={"mode": 0}']),
    "keys of JSON": (
        {"compilation-config.mode": "0", "compilation-config.pass_config.fuse_norm_quant": "true"},
        ["--compilation-config.mode=0", "--compilation-config.pass_config.fuse_norm_quant=true"],
    ),
    "an item for a list of JSON": (
        {"compilation-config.custom_ops+": "none,+quant_fp8"},
        ["--compilation-config.custom_ops+=none,+quant_fp8"],
    ),
    "a list": ({"cudagraph-capture-sizes": "1 2  4"}, ["--cudagraph-capture-sizes", "1", "2", "4"]),
    "a pair": ({"a-pair": "x y"}, ["--a-pair", "x", "y"]),
    "a value that may be left out": ({"maybe": "x"}, ["--maybe=x"]),
    "a switch that is on": ({"enforce-eager": "true"}, ["--enforce-eager"]),
    "a switch without a word": ({"enforce-eager": ""}, ["--enforce-eager"]),
    "a switch that is off": ({"enforce-eager": "False"}, ["--no-enforce-eager"]),
    "the negation of a switch": ({"no-enforce-eager": "true"}, ["--no-enforce-eager"]),
    "the negation of a switch, negated": ({"no-enforce-eager": "false"}, ["--enforce-eager"]),
    "a switch that has no other side": ({"log-more": "false"}, []),
    "the one data parallel rank of a lane": ({"data-parallel-size": "1"}, ["--data-parallel-size=1"]),
}


@pytest.mark.parametrize(("given", "want"), TAKEN.values(), ids=TAKEN)
def test_is_written_so_for_vllm(given: dict[str, str], want: list[str]) -> None:
    assert vllm_args.command_line(given, known()) == want


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "a misspelt flag": ({"max-num-seq": "8"}, "no engine argument max-num-seq; did you mean max-num-seqs?"),
    "a key of a misspelt flag": ({"compilation-confg.a_b": "1"}, "-confg; did you mean compilation-config?"),
    "a flag between the items of a list": ({"cudagraph-capture-sizes": "1 --model=x"}, "its item '--model=x' cannot"),
    "a switch with a value": ({"enforce-eager": "maybe"}, "is a switch; write true or false, not 'maybe'"),
    "a key of a switch": ({"enforce-eager.x": "true"}, "is a switch and has no keys; write enforce-eager: true or"),
    "JSON in one piece and a key of it": (
        {"compilation-config": "{}", "compilation-config.mode": "0"},
        "compilation-config is given whole and by the key compilation-config.mode; write it one way",
    ),
    "several data parallel ranks": ({"data-parallel-size": "2"}, "is '2' and a lane has 1: remove it; set spec.lanes"),
}


@pytest.mark.parametrize(("given", "says"), REFUSED.values(), ids=REFUSED)
def test_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(SetupError) as raised:
        vllm_args.command_line(given, known())
    assert says in str(raised.value)


@pytest.mark.parametrize("flag", [*flags.OWNED_FLAGS, "no-disable-log-stats", "kv-transfer-config.kv_role"])
def test_what_the_contract_owns_the_worker_refuses_with_the_same_reason(flag: str) -> None:
    with pytest.raises(SetupError) as raised:
        vllm_args.command_line({flag: "x"}, known())
    owned = flags.owner(flag)
    assert owned is not None
    assert str(raised.value).endswith(f"is set by StreamServe: remove it; {flags.OWNED_FLAGS[owned]}")


@pytest.mark.parametrize(
    "flag",
    [
        *("speculative-config", "kv-transfer-config", "scheduler-cls", "worker-extension-cls", "additional-config"),
        *("disable-log-stats", "model"),
    ],
)
def test_what_the_worker_sets_itself_the_contract_owns(flag: str) -> None:
    assert flags.owner(flag) == flag
