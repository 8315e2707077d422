"""Which bearer tokens let whom in, and how soon a change of their files counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.errors import Unauthenticated
from streamserve.router.fronts import tokens as subject
from streamserve.router.fronts.tokens import LOOK_SECONDS, MIN_CHARACTERS, Tokens

GOOD = "a-token-of-24-characters"
OTHER = "another-one-of-24-chars."


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, **found: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, token in found.items():
        (folder / name).write_text(token)


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(Unauthenticated) as raised:
        call()
    return raised.value.reason


@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        (f"Bearer {GOOD}", "anna"),
        (f"bearer   {GOOD} ", "anna"),
        (f"BEARER {OTHER}", "bert"),
        (f"Bearer {GOOD}x", "UNKNOWN_TOKEN"),
        (f"Bearer {GOOD[:-1]}", "UNKNOWN_TOKEN"),
        (f"Bearer {GOOD.upper()}", "UNKNOWN_TOKEN"),
        ("Bearer", "NO_TOKEN"),
        ("Bearer  ", "NO_TOKEN"),
        (GOOD, "NO_TOKEN"),
        (f"Basic {GOOD}", "NO_TOKEN"),
        ("", "NO_TOKEN"),
        (None, "NO_TOKEN"),
    ],
)
def test_a_header_names_its_client_or_is_refused(tmp_path: Path, header: str | None, verdict: str) -> None:
    write(tmp_path, anna=GOOD + "\n", bert=OTHER)
    tokens = Tokens(tmp_path, clock=Clock())
    if verdict.islower():
        assert tokens.client(header) == verdict
    else:
        assert reason(lambda: tokens.client(header)) == verdict


@given(st.text(max_size=200))
def test_no_header_raises_anything_but_a_refusal(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    tokens = Tokens(tmp_path_factory.getbasetemp() / "none", clock=Clock())
    assert reason(lambda: tokens.client(header)) in ("NO_TOKEN", "UNKNOWN_TOKEN")
    assert reason(lambda: tokens.client(f"Bearer {header}")) in ("NO_TOKEN", "UNKNOWN_TOKEN")


def test_a_change_counts_after_the_next_look_and_not_before(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, anna=GOOD)
    tokens = Tokens(tmp_path, clock=clock)
    assert tokens.client(f"Bearer {GOOD}") == "anna"
    (tmp_path / "anna").unlink()
    write(tmp_path, bert=OTHER)
    clock.now += LOOK_SECONDS / 2
    assert tokens.client(f"Bearer {GOOD}") == "anna", "looked at more often than once per second"
    clock.now += LOOK_SECONDS / 2
    assert tokens.client(f"Bearer {OTHER}") == "bert"
    assert reason(lambda: tokens.client(f"Bearer {GOOD}")) == "UNKNOWN_TOKEN"


def test_the_folder_may_come_later_and_go_again(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "tokens"
    tokens = Tokens(folder, clock=clock)
    assert reason(lambda: tokens.client(f"Bearer {GOOD}")) == "UNKNOWN_TOKEN"
    write(folder, anna=GOOD)
    clock.now += LOOK_SECONDS
    assert tokens.client(f"Bearer {GOOD}") == "anna"
    shutil.rmtree(folder)
    clock.now += LOOK_SECONDS
    assert reason(lambda: tokens.client(f"Bearer {GOOD}")) == "UNKNOWN_TOKEN"


def test_files_are_followed_as_the_kubelet_replaces_them(tmp_path: Path) -> None:
    """A folder per version, `..data` pointing to the newest, every entry a link through it."""
    clock, volume = Clock(), tmp_path / "volume"
    volume.mkdir()

    def publish(version: str, **found: str) -> None:
        write(volume / f"..{version}", **found)
        fresh = volume / "..data_tmp"
        fresh.symlink_to(f"..{version}")
        os.replace(fresh, volume / "..data")
        for name in found:
            if not (volume / name).is_symlink():
                (volume / name).symlink_to(f"..data/{name}")

    publish("one", anna=GOOD)
    tokens = Tokens(volume, clock=clock)
    assert tokens.client(f"Bearer {GOOD}") == "anna"
    publish("two", anna=OTHER)
    clock.now += LOOK_SECONDS
    assert tokens.client(f"Bearer {OTHER}") == "anna"
    assert reason(lambda: tokens.client(f"Bearer {GOOD}")) == "UNKNOWN_TOKEN"


def test_a_file_without_a_token_is_left_out_and_named(tmp_path: Path) -> None:
    found = {
        "empty": "",
        "short": "x" * (MIN_CHARACTERS - 1),
        "two-words": "two words of which none is one token",
        "long": "x" * (subject.MAX_BYTES + 1),
        "latin": "ä" * MIN_CHARACTERS,
        "good": GOOD,
        "twin": GOOD,
    }
    write(tmp_path, **found)
    known = subject.read(tmp_path, list(found))
    assert list(known.clients.values()) == ["good"]
    assert [sentence.split()[0] for sentence in known.refused] == [
        "empty",
        "short",
        "two-words",
        "long",
        "latin",
        "twin",
    ]
    assert GOOD not in "".join(known.refused)


def test_there_is_a_bound_on_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_CLIENTS", 2)
    names = ["a", "b", "c"]
    write(tmp_path, **{name: name * MIN_CHARACTERS for name in names})
    known = subject.read(tmp_path, names)
    assert list(known.clients.values()) == ["a", "b"]
    assert known.refused == ("3 clients: only the first 2 by name are let in",)


def test_a_file_that_cannot_be_read_costs_its_own_client_only(tmp_path: Path) -> None:
    write(tmp_path, anna=GOOD)
    (tmp_path / "bert").mkdir()
    known = subject.read(tmp_path, ["anna", "bert", "gone"])
    assert list(known.clients.values()) == ["anna"]
    assert [sentence.split()[0] for sentence in known.refused] == ["bert", "gone"]
