"""What the commands say to a bad file, a bad machine and a bad option: one line each, with what to do, and no start."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.processes import LocalFleet

EXAMPLES = Path(__file__).parents[3] / "examples"
REFUSED = 2
FAILED = 1


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "streamserve.cli.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The examples as a user has them: the file beside the models."""
    (tmp_path / "local").mkdir()
    shutil.copytree(EXAMPLES / "models", tmp_path / "models")
    shutil.copy(EXAMPLES / "local" / "streampair.yaml", tmp_path / "local")
    yield tmp_path / "local"


# What is changed in the example (old, new) and what is said about it: (line, column) and text.
FILES: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "malformed YAML": (("lanes: 2 ", "lanes: [2 "), ("malformed YAML",)),
    "a tab for indentation": (("  lanes: 2", "\tlanes: 2"), (":22:1: malformed YAML",)),
    "an unknown field": (
        ("maxDepth: 6", "maxDepht: 6"),
        (":27:5: spec.speculation.maxDepht: unknown field (did you mean spec.speculation.maxDepth?)",),
    ),
    "a wrong type": (("lanes: 2", "lanes: two"), (':22:10: spec.lanes: must be a whole number, is "two"',)),
    "depth over what the engine is built for": (
        ("max: 6}", "max: 9}"),
        (":29:26: spec.speculation.depth.max: 9 is above maxDepth 6", "lower max, or raise maxDepth"),
    ),
    "a lower bound of depth above the upper": (
        ("{min: 1, max: 6}", "{min: 5, max: 2}"),
        (":29:18: spec.speculation.depth.min: 5 is above the maximum depth 2", "lower min or raise max"),
    ),
    "a policy that is not built": (("policy: Goodput", "policy: Ema"), ("is not in this release: use Goodput",)),
    "a choice in the wrong case": (("Degrade ", "degrade "), ("did you mean Degrade?",)),
    "an engine flag that is ours": (
        ("max-num-seqs", "kv-transfer-config"),
        ("spec.engine.args.kv-transfer-config", "remove it"),
    ),
    "a missing model folder": (("tiny-draft", "tiny-nothing"), ("spec.speculation.draft.name: there is no folder",)),
    "another apiVersion": (("streamserve.io/v1alpha1", "v1"), ("did you mean streamserve.io/v1alpha1?",)),
}


@pytest.mark.parametrize("name", FILES)
def test_validate_and_up_say_the_same_about_a_bad_file(name: str, folder: Path) -> None:
    (old, new), said = FILES[name]
    file = folder / "streampair.yaml"
    text = file.read_text()
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1))
    validated = run("validate", str(file))
    assert validated.returncode == FAILED
    assert all(part in validated.stdout for part in said), validated.stdout
    upped = run("up", "-f", str(file), "--engine", "Simulator", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert upped.returncode == REFUSED
    assert [f"streamserve: {line}" for line in validated.stdout.splitlines()] == upped.stderr.splitlines()


def test_a_draft_with_another_vocabulary_is_refused_before_an_engine_loads(folder: Path) -> None:
    config = folder.parent / "models" / "tiny-draft" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 5_000}))
    done = run("up", "-f", str(folder / "streampair.yaml"), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert done.returncode == REFUSED
    assert "has a vocabulary of 5000 tokens" in done.stderr
    assert "choose a draft that was made for this model" in done.stderr


@dataclass(frozen=True, slots=True)
class Case:
    words: tuple[str, ...]
    status: int
    says: tuple[str, ...]


UP = ("up", "-f", "{file}", "--engine", "Simulator", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
COMMANDS: dict[str, Case] = {
    "up with a port in use": Case((*UP, "--grpc", "{busy}"), REFUSED, ("{busy} is in use", "choose another")),
    "up with an address without a port": Case(
        (*UP, "--grpc", "127.0.0.1"), REFUSED, ("is no address", "write host:port")
    ),
    "up without its file": Case(("up", "-f", "nowhere.yaml"), REFUSED, ("cannot be read", "check the path after -f")),
    "up with a Redis that is dead": Case(
        (*UP, "--redis", "redis://127.0.0.1:1/0"), REFUSED, ("cannot be reached", "leave --redis out")
    ),
    "up with a Redis URL that is none": Case(
        (*UP, "--redis", "localhost:6379"), REFUSED, ("write redis://[:password@]host:port/0",)
    ),
    "up with too little memory for the lanes": Case(
        ("up", "-f", "{file}", "--lanes", "200", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        REFUSED,
        ("too little memory for 200 lanes", "GB are free"),
    ),
    "up with more lanes than there can be": Case((*UP, "--lanes", "300"), REFUSED, ("is not between 0 and 256",)),
    "validate without its file": Case(
        ("validate", "nowhere.yaml"), FAILED, ("cannot be read", "check the path and its permissions")
    ),
    "generate with nobody there": Case(
        ("generate", "--server", "127.0.0.1:1", "hi"), FAILED, ("nothing answers at 127.0.0.1:1", "streamserve up")
    ),
    "generate with an address that is none": Case(
        ("generate", "--server", "here", "hi"), REFUSED, ("is no address", "write host:port")
    ),
    "generate with a URL for an address": Case(
        ("generate", "--server", "http://127.0.0.1:8000", "hi"), REFUSED, ("write host:port, without http://",)
    ),
    "generate with no time": Case(
        ("generate", "--server", "{server}", "--timeout", "0", "hi"), REFUSED, ("--timeout must be above 0",)
    ),
    "generate with an empty prompt": Case(
        ("generate", "--server", "{server}", ""), FAILED, ("the prompt is empty", "INVALID_ARGUMENT")
    ),
    "generate with no tokens": Case(
        ("generate", "--server", "{server}", "--max-tokens", "0", "hi"), FAILED, ("ask for at least 1 token",)
    ),
    "generate with too many tokens": Case(
        ("generate", "--server", "{server}", "--max-tokens", "99999", "hi"), FAILED, ("leaves 2047 after the prompt",)
    ),
    "generate with a temperature that is no number": Case(
        ("generate", "--server", "{server}", "--temperature", "nan", "hi"), FAILED, ("use a number from 0 to 2",)
    ),
    "generate with a model that is not served": Case(
        ("generate", "--server", "{server}", "--model", "gpt-9", "hi"), FAILED, ("served: tiny", "NOT_FOUND")
    ),
    "explain with a prompt over the limit": Case(
        ("explain", "--server", "{server}", "--prompt-tokens", "9999"), FAILED, ("shorten the prompt",)
    ),
    "top with no interval": Case(
        ("top", "--server", "{server}", "--interval", "0"), REFUSED, ("must be at least 0.1 s",)
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_one_line_what_is_wrong(name: str, fleet: LocalFleet) -> None:
    case = COMMANDS[name]
    file = EXAMPLES / "local" / "streampair.yaml"
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        known = {"file": str(file), "busy": f"127.0.0.1:{busy.getsockname()[1]}", "server": fleet.grpc}
        done = run(*(word.format(**known) for word in case.words))
    said = (done.stderr + done.stdout).splitlines()
    assert done.returncode == case.status, said
    assert len(said) == 1, said
    assert all(part.format(**known) in said[0] for part in case.says), said
