"""--help is documentation: every option is explained, seconds are called seconds, and an example stands at the end."""

from __future__ import annotations

import argparse
import re

import pytest

from streamserve.cli import main
from streamserve.router import config as router_settings
from streamserve.worker import options as worker_settings


def command(name: str) -> argparse.ArgumentParser:
    module = main.import_module(main.COMMANDS[name][0])
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    module.add_parser(subparsers)
    found: argparse.ArgumentParser = subparsers.choices[name]
    return found


PARSERS = {
    **{f"streamserve {name}": command(name) for name in main.COMMANDS},
    "streamserve-router": router_settings.parser(),
    "streamserve-worker": worker_settings.parser(),
}


@pytest.mark.parametrize("name", PARSERS)
def test_an_example_of_the_command_stands_in_its_epilog(name: str) -> None:
    epilog = PARSERS[name].epilog or ""
    assert re.search(rf"^ +(\$ )?{name} ", epilog, re.M), epilog
    assert max(map(len, epilog.splitlines())) <= 120


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_is_explained(name: str) -> None:
    silent = [action.option_strings or action.dest for action in PARSERS[name]._actions if not action.help]
    assert silent == []


@pytest.mark.parametrize("name", PARSERS)
def test_a_time_has_its_unit(name: str) -> None:
    for action in PARSERS[name]._actions:
        if action.metavar == "S":
            assert "second" in (action.help or ""), action.option_strings


@pytest.mark.parametrize("name", PARSERS)
def test_a_default_is_told(name: str) -> None:
    for action in PARSERS[name]._actions:
        if action.option_strings and action.default not in (None, "", False, argparse.SUPPRESS):
            assert "default" in (action.help or ""), action.option_strings
