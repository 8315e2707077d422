"""`make test` runs every folder of tests once, ends as its worst part, and says what all of them say together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BY_HAND = {"chart", "cluster", "soak", "support"}
"""Not of `make test`; the chart's own are partly a step of `make check`."""
LIMIT_SECONDS = 90


@pytest.fixture(scope="module")
def every(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("test")


def test_each_file_of_tests_is_run_by_one_part(root: Path, every: ModuleType) -> None:
    files = [file.relative_to(root) for file in (root / "tests").rglob("test_*.py")]
    parts = [part for stage in every.STAGES for part in stage]
    by = {
        file: [part.name for part in parts if runs(part.tests, file)] for file in files if file.parts[1] not in BY_HAND
    }
    assert len(by) > 100
    assert {file: names for file, names in by.items() if len(names) != 1} == {}


def runs(arguments: tuple[str, ...], file: Path) -> bool:
    """As pytest reads its arguments: what is below one of them, unless it is below one that is ignored."""
    ignored = {Path(word.removeprefix("--ignore=")) for word in arguments if word.startswith("--ignore=")}
    above = {file, *file.parents}
    return bool(above & {Path(word) for word in arguments}) and not above & ignored


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("==== 3 passed in 0.01s ====", {"passed": 3}),
        ("= 1 failed, 4171 passed, 1 warning in 2272.11s (0:37:52) =", {"failed": 1, "passed": 4171, "warnings": 1}),
        ("= 2 passed, 1 error in 90000.00s (1 day, 1:00:00) =", {"passed": 2, "errors": 1}),
        ("===== no tests ran in 0.02s =====", {}),
        ("=========== short test summary info ===========", None),
        ("FAILED tests/a.py::b - assert '3 passed in 0.01s'", None),
    ],
)
def test_a_closing_line_is_told_from_others_and_counted(
    every: ModuleType, line: str, wanted: dict[str, int] | None
) -> None:
    assert every.counted(line + "\n") == (None if wanted is None else Counter(wanted))


def test_the_sum_is_a_closing_line_like_theirs(every: ModuleType) -> None:
    said = every.closing([Counter(passed=7, warnings=1), Counter(failed=1, passed=2)], 3725.4)
    assert said.strip("= ") == "1 failed, 9 passed, 1 warnings in 3725.40s (1:02:05)"
    assert every.counted(said) == Counter(failed=1, passed=9, warnings=1)


def test_a_part_that_never_came_to_its_end_is_an_error(every: ModuleType) -> None:
    assert every.counted(every.closing([Counter(passed=7), None], 1.0)) == Counter(passed=7, errors=1)


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [((0, 0), 0), ((0, 5), 0), ((5, 5), 5), ((0, 1), 1), ((5, 2), 2), ((0, -9), -9)],
)
def test_it_ends_as_its_worst_part(every: ModuleType, statuses: tuple[int, ...], wanted: int) -> None:
    assert every.status_of(statuses) == wanted


PARTS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("every", "{script}")
every = importlib.util.module_from_spec(spec)
sys.modules["every"] = every
spec.loader.exec_module(every)
every.STAGES = ((every.Part("one", ("{one}",)), every.Part("two", ("{two}",))), (every.Part("three", ("{three}",)),))
sys.exit(every.main(["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir={folder}", "-p", "tests.conftest"]))
"""
PASSES = "def test_a():\n    pass\n"
MEETS = """
import pathlib, time

def test_a():
    pathlib.Path(r"{mine}").touch()
    end = time.monotonic() + 60
    while not pathlib.Path(r"{other}").exists():
        assert time.monotonic() < end, "the other part does not run beside this one"
        time.sleep(0.02)
"""
LASTS = """
import pathlib, time, pytest

@pytest.fixture
def held():
    pathlib.Path(r"{folder}/begun").touch()
    yield
    pathlib.Path(r"{folder}/given back").touch()

def test_that_lasts(held):
    time.sleep(60)
"""


def command(root: Path, folder: Path, **tests: str) -> list[str]:
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(text)
    paths = {name: str(folder / f"test_{name}.py") for name in tests}
    return [sys.executable, "-c", PARTS.format(script=root / "hack" / "test.py", folder=folder, **paths)]


def test_parts_run_beside_each_other_and_the_next_stage_after_them_whatever_came_of_them(
    root: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    meets = MEETS.format(mine=one, other=two), MEETS.format(mine=two, other=one) + "    assert False\n"
    done = subprocess.run(
        command(root, tmp_path, one=meets[0], two=meets[1], three=PASSES),
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_SECONDS,
    )
    assert done.returncode == 1, done.stdout
    lines = done.stdout.splitlines()
    assert "1 failed, 2 passed" in lines[-1]
    assert lines[-1].startswith("=")
    assert all(line.split("|")[0].strip() in ("one", "two", "three") for line in lines[:-1])


def test_told_to_end_its_parts_give_back_what_they_hold_and_no_other_begins(root: Path, tmp_path: Path) -> None:
    words = command(root, tmp_path, one=PASSES, two=LASTS.format(folder=tmp_path), three=PASSES)
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ}) as child:
        end = time.monotonic() + LIMIT_SECONDS
        while not (tmp_path / "begun").exists() and child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=LIMIT_SECONDS)
    assert (tmp_path / "given back").exists(), said
    assert child.returncode == 2, said
    assert "three" not in said
