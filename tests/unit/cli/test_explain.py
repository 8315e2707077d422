"""What `explain` asks."""

from __future__ import annotations

import argparse

import pytest

from streamserve.cli import explain
from streamserve.cli.errors import Refused
from streamserve.cli.main import main
from streamserve.contract import tokens


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers(dest="command"))
    return parser.parse_args(["explain", *words])


def test_a_prompt_of_its_own_length_is_imagined_and_what_is_not_given_stays_absent() -> None:
    request = explain.build_request(arguments())
    assert len(tokens.unpack(request.prompt.token_ids.ids_le32)) == explain.DEFAULT_PROMPT_TOKENS
    assert (request.model, request.workload) == ("", "")
    assert not request.sampling.HasField("max_tokens")


def test_every_option_is_sent() -> None:
    request = explain.build_request(arguments("--model", "m", "--workload", "w", "--max-tokens", "7", "x"))
    assert (request.model, request.workload, request.prompt.text) == ("m", "w", "x")
    assert request.sampling.max_tokens == 7


@pytest.mark.parametrize("words", [("--prompt-tokens", "0"), ("--max-tokens", "0")])
def test_a_count_that_is_none_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(Refused, match=words[0]):
        explain.build_request(arguments(*words))


def test_a_prompt_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "\udcff"]) == 2
    assert "have to be UTF-8 text" in capsys.readouterr().err
