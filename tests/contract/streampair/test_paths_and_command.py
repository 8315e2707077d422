"""Local folders, the shipped examples, `streamserve validate` and the settings page."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamserve.cli import validate
from streamserve.contract.streampair import (
    Problem,
    StreamPair,
    cluster_only,
    load,
    load_file,
    resolve_model_paths,
)

ROOT = Path(__file__).resolve().parents[3]
HEAD = "apiVersion: streamserve.io/v1alpha1\nkind: StreamPair\nmetadata: {name: llama}\nspec:\n"


def written(folder: Path, body: str) -> Path:
    file = folder / "pair.yaml"
    file.write_text(HEAD + body, encoding="utf-8")
    return file


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    parser = argparse.ArgumentParser(prog="streamserve")
    validate.add_parser(parser.add_subparsers())
    options = parser.parse_args(["validate", *arguments])
    status: int = options.func(options)
    return status, capsys.readouterr().out


def test_folders_beside_the_file_become_absolute(tmp_path: Path) -> None:
    model, draft = model_folder(tmp_path / "models/big"), model_folder(tmp_path / "x/small")
    file = written(
        tmp_path / "x",
        "  model: {name: ../models/big}\n  speculation: {method: DraftModel, draft: {name: small}}\n",
    )
    pair = load_file(file)
    assert isinstance(pair, StreamPair)
    assert pair.spec.model.name == str(model.resolve())
    assert pair.spec.speculation.draft is not None
    assert pair.spec.speculation.draft.name == str(draft.resolve())


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    pair = load_file(written(tmp_path, "  model: {name: meta-llama/Llama-3.1-8B}\n"))
    assert isinstance(pair, StreamPair)
    assert pair.spec.model.name == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("./nowhere", "there is no folder"),
        ("../nowhere", "there is no folder"),
        ("/nowhere/at/all", "there is no folder"),
        ("./empty", "has no config.json"),
        ("./file", "is a file"),
    ],
)
def test_a_path_without_a_model_is_a_problem_at_its_line(tmp_path: Path, name: str, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    problems = load_file(written(tmp_path, f"  model:\n    name: {name}\n"))
    assert isinstance(problems, list)
    assert [(problem.path, problem.line, problem.column) for problem in problems] == [("spec.model.name", 6, 11)]
    assert wanted in problems[0].message


def test_both_missing_folders_are_reported(tmp_path: Path) -> None:
    body = "  model: {name: ./a}\n  speculation: {method: DraftModel, draft: {name: ./b}}\n"
    problems = load_file(written(tmp_path, body))
    assert isinstance(problems, list)
    assert [problem.path for problem in problems] == ["spec.model.name", "spec.speculation.draft.name"]


def test_a_name_too_long_for_the_file_system_is_no_exception(tmp_path: Path) -> None:
    pair = load(HEAD + f"  model: {{name: ./{'a' * 400}}}\n")
    assert isinstance(pair, StreamPair)
    problems = resolve_model_paths(pair, tmp_path)
    assert isinstance(problems, list)
    assert isinstance(problems[0], Problem)


def test_a_missing_file_and_a_folder_are_problems(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        problems = load_file(path)
        assert isinstance(problems, list)
        assert "cannot be read" in problems[0].message


@pytest.mark.parametrize("name", ["local", "cluster", "gpu"])
def test_the_example_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = command([str(ROOT / "examples" / name / "streampair.yaml")], capsys)
    assert status == 0, out
    assert out.startswith("valid: ")


def test_the_local_example_is_what_the_demo_expects() -> None:
    pair = load_file(ROOT / "examples" / "local" / "streampair.yaml")
    assert isinstance(pair, StreamPair)
    assert pair.spec.lanes == 2
    assert (pair.spec.speculation.depth.min, pair.spec.speculation.depth_max) == (1, 6)
    assert pair.spec.routing.local_prefill_max_tokens == 0
    assert Path(pair.spec.model.name).is_dir()
    assert cluster_only(pair) == []


def test_validate_prints_one_line_a_problem_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "  model: {name: m}\n  lanes: -1\n  slo: {defalt: {}}\n")
    status, out = command([str(file)], capsys)
    assert status == 1
    assert out.splitlines() == [
        f"{file}:6:10: spec.lanes: must be at least 0, is the number -1",
        f"{file}:7:9: spec.slo.defalt: unknown field (did you mean spec.slo.default?)",
    ]


def test_validate_notes_what_has_no_effect_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "  model: {name: m}\n  placement: Any\n  speculation: {policy: Off}\n")
    status, out = command([str(file)], capsys)
    assert status == 0
    assert out.splitlines() == [
        "valid: 4 fields set, StreamPair llama",
        "note: spec.placement: only on a cluster, `streamserve up` does not use it",
        "note: spec.speculation.policy (line 7): quote this word, kubectl reads it bare as a boolean",
    ]


def test_validate_reads_standard_input_and_answers_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO((HEAD + "  model: {name: m}\n  lanes: 400\n").encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    status, out = command(["-", "--json"], capsys)
    assert status == 1
    assert json.loads(out) == {
        "file": "<stdin>",
        "valid": False,
        "fields_set": 0,
        "problems": [
            {
                "path": "spec.lanes",
                "line": 6,
                "column": 10,
                "message": "must be at most 256, is the number 400",
                "suggestion": "",
                "rule": "",
            }
        ],
        "notes": [],
    }


def test_validate_accepts_an_absolute_path_that_only_the_pod_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = command([str(written(tmp_path, "  model: {name: /models/llama}\n"))], capsys)
    assert status == 0


def test_the_settings_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "settings_table.py"), "--check"],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
