"""`make check`: which steps it has, that a step builds what it needs first, and what is seen of a build."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BUILT = "import pathlib, sys; print('half', file=sys.stderr); print('a path'); pathlib.Path({name!r}).touch()"


@pytest.fixture
def check(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """hack/check.py, with its steps in an empty folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "hack"))
    module = script("check")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def program(folder: Path, name: str, code: str) -> str:
    (folder / name).write_text(code)
    return name


def test_every_tool_of_the_house_has_its_step(check: ModuleType) -> None:
    names = {step.name for step in check.STEPS}
    assert names == {"format", "lint", "types", "calls", "layers", "protos", "generated", "house", "chart"}


def test_the_chart_is_linted_rendered_and_refused_and_kubernetes_schemas_read_it(check: ModuleType, root: Path) -> None:
    run = ""
    for place in check.CHART:
        path, _, only = place.partition("::")
        text = (root / path).read_text()
        run += only or text
        assert not only or f"def {only}(" in text
    assert {
        "test_helm_lint_finds_nothing",
        "test_the_objects_are_those_of_the_golden_file",
        "test_kubernetes_would_take_every_object",
        "test_kubernetes_would_take_the_autoscalers",
        "test_is_refused_with_words_that_help",
    } <= set(re.findall(r"test_\w+", run))


def test_the_chart_needs_helm_and_the_schemas(check: ModuleType, root: Path) -> None:
    (chart,) = (step for step in check.STEPS if step.name == "chart")
    assert chart.needs == ("hack/helm/build.py", "hack/helm/validator.py")
    assert all((root / name).is_file() for name in chart.needs)


def test_a_step_runs_once_what_it_needs_is_built_and_the_build_is_seen(
    check: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    needs = program(tmp_path, "build.py", BUILT.format(name="built"))
    command = (sys.executable, "-c", "import pathlib; raise SystemExit(not pathlib.Path('built').exists())")
    assert check.run(check.Step("a", "a step", command, "mend it", needs=(needs,)))
    seen = capfd.readouterr()
    assert seen.err == "half\n"
    assert "a path" not in seen.out


def test_a_step_whose_build_fails_fails_and_runs_nothing(
    check: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    needs = program(tmp_path, "build.py", "raise SystemExit(1)")
    command = (sys.executable, "-c", BUILT.format(name="ran"))
    assert not check.run(check.Step("a", "a step", command, "mend it", needs=(needs,)))
    assert not (tmp_path / "ran").exists()
    assert "build.py failed; the lines above say why, and nothing was checked" in capfd.readouterr().out
