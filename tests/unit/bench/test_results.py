import json
from pathlib import Path

import pytest
from benchkit import results
from benchkit.results import BenchError, WorkFile


def test_finished_runs_are_read_back_in_order(tmp_path: Path) -> None:
    work = WorkFile(tmp_path / "work.jsonl", "f1")
    for repeat in range(3):
        work.append({"repeat": repeat})
    assert [row["repeat"] for row in work.read()] == [0, 1, 2]


def test_a_line_that_a_killed_run_left_unfinished_is_dropped_and_swallows_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    work = WorkFile(path, "f1")
    work.append({"repeat": 0})
    with path.open("ab") as file:
        file.write(b'{"fingerprint": "f1", "rep')
    assert [row["repeat"] for row in work.read()] == [0]
    work.append({"repeat": 1})
    assert [row["repeat"] for row in work.read()] == [0, 1]


def test_runs_of_another_configuration_are_never_mixed_in(tmp_path: Path) -> None:
    WorkFile(tmp_path / "work.jsonl", "f1").append({"repeat": 0})
    with pytest.raises(BenchError, match="another configuration"):
        WorkFile(tmp_path / "work.jsonl", "f2").read()


def test_no_work_file_is_no_work(tmp_path: Path) -> None:
    assert WorkFile(tmp_path / "none.jsonl", "f1").read() == []


def test_the_newest_result_is_found_by_date(tmp_path: Path) -> None:
    for date in ("2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z", "2025-12-31T00:00:00Z"):
        results.write("path", {"date": date}, tmp_path)
    assert results.newest("path", tmp_path) == {"date": "2026-02-01T00:00:00Z"}
    assert results.newest("router-cpu", tmp_path) is None


def test_a_stamp_names_commit_date_and_machine_but_no_host_or_path() -> None:
    stamp = results.stamp()
    assert set(stamp) == {"commit", "date", "machine"}
    text = json.dumps(stamp)
    assert str(results.ROOT) not in text
    assert stamp["machine"]["cores"] >= 1


def test_a_fingerprint_depends_on_values_and_not_on_their_order() -> None:
    assert results.digest({"a": 1, "b": 2}) == results.digest({"b": 2, "a": 1})
    assert results.digest({"a": 1}) != results.digest({"a": 2})
