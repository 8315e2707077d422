"""The commands and a router with TLS: served with the right files, told what is wrong with others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.certificates import Authority, as_flags
from tests.support.processes import Process, default_config

from streamserve.contract import runtime_config


@dataclass(frozen=True, slots=True)
class Secured:
    address: str
    client: tuple[str, ...]
    stranger: tuple[str, ...]
    folder: Path


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A router alone: it serves nobody, but it answers."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority(folder), Authority(folder, "another authority")
    config, fleet, ready = folder / "config.json", folder / "fleet.json", folder / "ready.json"
    config.write_bytes(runtime_config.encode(default_config("u")))
    fleet.write_text('{"workers": []}')
    command = (
        *(sys.executable, "-m", "streamserve.router", "--namespace", "local", "--pair", "tiny", "--pair-uid", "u"),
        *("--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--config", str(config), "--fleet", str(fleet)),
        *("--ready-file", str(ready), "--die-with-parent", *as_flags(authority.issue("router"))),
    )
    process = Process("router", command, folder, ready_file=ready)
    try:
        address = process.start().wait_ready().ready["grpc"]
        yield Secured(address, as_flags(authority.issue("client")), as_flags(other.issue("stranger")), folder)
    finally:
        process.kill()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "streamserve.cli.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


ANSWERS = {
    "top": (("top", "--once", "--json"), 0, '"lanes": []'),
    "explain": (("explain", "--json"), 1, '"candidates": []'),
    "generate": (("generate", "hi"), 1, "UNAVAILABLE"),
}


@pytest.mark.parametrize(("words", "status", "said"), ANSWERS.values(), ids=ANSWERS)
def test_a_command_talks_to_a_router_over_tls(words: tuple[str, ...], status: int, said: str, router: Secured) -> None:
    done = run(*words, "--server", router.address, *router.client)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "TLS" not in done.stderr


def test_without_tls_it_says_that_tls_is_wanted(router: Secured) -> None:
    done = run("top", "--once", "--server", router.address)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "does not speak gRPC without TLS: give --tls-ca, --tls-certificate and --tls-key" in done.stderr


def test_files_of_another_authority_are_named(router: Secured) -> None:
    done = run("top", "--once", "--server", router.address, *router.stranger)
    assert done.returncode == 1
    assert f"no TLS connection with {router.address}" in done.stderr
    assert "stranger.pem" in done.stderr


def test_half_of_the_files_and_a_missing_one_are_refused_before_anything_is_sent(router: Secured) -> None:
    half = run("top", "--server", router.address, *router.client[:2])
    assert half.returncode == 2
    assert "give --tls-ca, --tls-certificate and --tls-key together" in half.stderr
    missing = run("top", "--server", router.address, *router.client[:5], str(router.folder / "no.key"))
    assert missing.returncode == 2
    assert "cannot read TLS file" in missing.stderr
