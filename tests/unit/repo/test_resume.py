"""A story on the cluster that was interrupted goes on with the first step that has not passed, and never elsewhere."""

from pathlib import Path

import pytest
from tests.cluster.resume import Notes

STORY = ["install", "serve", "edit", "leave"]
HERE = ("commit", "cluster")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "story.json"


def passed(file: Path, *steps: str) -> None:
    notes = Notes(file, HERE)
    for step in steps:
        notes.passed(step, 1.5)


CASES = {
    "nothing has passed": ([], []),
    "two have passed": (["install", "serve"], ["install", "serve"]),
    "one failed and one after it passed": (["install", "edit"], ["install"]),
    "all have passed but the story was not ended": (STORY, STORY),
    "a step of another story is noted": (["install", "upgrade"], ["install"]),
}


@pytest.mark.parametrize(("before", "behind"), CASES.values(), ids=CASES)
def test_what_is_behind_it(file: Path, before: list[str], behind: list[str]) -> None:
    passed(file, *before)
    notes = Notes(file, HERE)
    assert notes.behind(STORY) == behind
    assert all(notes.seconds[step] == 1.5 for step in behind)


@pytest.mark.parametrize("other", [("another commit", "cluster"), ("commit", "another cluster"), ()])
def test_another_commit_or_cluster_begins_anew(file: Path, other: tuple[str, ...]) -> None:
    passed(file, "install", "serve")
    assert Notes(file, other).behind(STORY) == []


@pytest.mark.parametrize("text", ["", "{", '{"of": ["commit", "cluster"'])
def test_notes_that_were_cut_off_count_for_nothing(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert Notes(file, HERE).behind(STORY) == []


def test_a_story_that_came_to_its_end_leaves_no_notes(file: Path) -> None:
    passed(file, *STORY)
    Notes(file, HERE).forget()
    assert Notes(file, HERE).behind(STORY) == []
    Notes(file, HERE).forget()


def test_what_cannot_be_told_apart_notes_nothing(file: Path) -> None:
    Notes(file, ()).passed("install", 1.0)
    assert not file.exists()
