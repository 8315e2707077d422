"""The five source roots are portions of one namespace package and hide nothing of Python's own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOTS = ("operator", "router", "worker", "proto", "cli")
TARGETS = {
    *("env", "demo", "up", "test", "test-unit", "test-e2e", "test-controlplane", "test-vllm-0.26", "check", "generate"),
    *("bench", "bench-simulator", "requirements", "clean", "help"),
}
FOLDERS = [
    "bench",
    "charts",
    "cli",
    "crds",
    "docs",
    "examples",
    "hack",
    "operator",
    "proto",
    "router",
    "tests",
    "worker",
]


def python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def test_operator_is_pythons_own_in_an_interpreter_started_in_the_repository(root: Path) -> None:
    code = "import operator, sysconfig; print(operator.__file__ == sysconfig.get_path('stdlib') + '/operator.py')"
    assert python(code, root) == "True"


@pytest.mark.parametrize("folder", [f"{name}{inner}" for name in ROOTS for inner in ("", "/streamserve")])
def test_a_namespace_folder_has_no_init_file(root: Path, folder: str) -> None:
    assert (root / folder).is_dir()
    assert not (root / folder / "__init__.py").exists()


def test_every_portion_is_found_under_one_name(root: Path) -> None:
    names = ["v1", "contract", "runtime", "operator", "router", "worker", "cli"]
    code = f"from importlib.util import find_spec; print([find_spec('streamserve.' + n) is not None for n in {names}])"
    assert python(code, root) == str([True] * len(names))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_fixed_folder_exists_and_holds_something(root: Path, folder: str) -> None:
    assert any((root / folder).iterdir())


def test_make_without_a_target_lists_every_target_with_what_it_does(root: Path) -> None:
    done = subprocess.run(["make"], cwd=root, check=True, capture_output=True, text=True, timeout=30)
    described = dict(re.findall(r"^  (\S+)\s{2,}(\S.*)$", done.stdout, re.MULTILINE))
    assert set(described) >= TARGETS


def test_continuous_integration_runs_check_and_test(root: Path) -> None:
    run = root / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert "make --no-print-directory check test" in run.read_text()
