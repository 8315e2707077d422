"""Whose folder is whose, and which ones the next `up` may remove."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamserve.cli.up import run_folder

OLD = time.time() - run_folder.STALE_SECONDS - 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ours, untouched for more than an hour."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = run_folder.create()
    assert {path.name for path in made.iterdir()} == {*run_folder.PARTS, "up.pid"}
    os.utime(made / "up.pid", (OLD, OLD))
    return made


def own(folder: Path, pid: int, started: int | None) -> None:
    (folder / "up.pid").write_text(json.dumps({"pid": pid, "started": started}))
    os.utime(folder / "up.pid", (OLD, OLD))


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(20)
    return process.pid


def test_the_folder_of_a_dead_up_goes_after_an_hour(folder: Path) -> None:
    own(folder, dead_pid(), 12345)
    (folder / "logs" / "router.log").write_text("x")
    assert run_folder.remove_dead() == [folder]
    assert not folder.exists()


def test_a_process_id_that_was_given_again_is_no_living_up(folder: Path) -> None:
    own(folder, os.getpid(), 1)
    assert run_folder.remove_dead() == [folder]


KEPT: dict[str, Callable[[Path], None]] = {
    "one that runs": lambda folder: None,
    "one that died a moment ago": lambda folder: (own(folder, dead_pid(), 1), run_folder.touch(folder))[-1],
    "one that says nothing of itself": lambda folder: (folder / "up.pid").unlink(),
    "one whose file is broken": lambda folder: (folder / "up.pid").write_text("{") and os.utime(folder / "up.pid"),
    "one of another name": lambda folder: (own(folder, dead_pid(), 1), folder.rename(folder.parent / "mine"))[0],
}


@pytest.mark.parametrize("name", KEPT)
def test_others_are_kept(name: str, folder: Path, tmp_path: Path) -> None:
    KEPT[name](folder)
    assert run_folder.remove_dead() == []
    assert len(list(tmp_path.iterdir())) == 1


def test_after_a_failure_the_logs_stay(folder: Path) -> None:
    run_folder.remove(folder, keep_logs=True)
    assert {path.name for path in folder.iterdir()} == {"logs", "up.pid"}
    run_folder.remove(folder, keep_logs=False)
    assert not folder.exists()
