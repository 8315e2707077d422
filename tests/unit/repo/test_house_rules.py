"""What the house rules say about a made-up repository."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest

# In two halves, so that this file keeps the rules it tests.
MACHINE = "/wo" + "rk/main/x"
REGISTRY = "py" + "pi.org"
MARK = "TO" + "DO"
SKIP = "pytest." + "skip"


@dataclass(frozen=True, slots=True)
class Case:
    path: str
    text: str
    says: str | None
    size_bytes: int = 0


CASES = {
    "an ordinary module is fine": Case("router/streamserve/router/a.py", "x = 1\n", None),
    "a package that would hide Python's operator": Case("operator/__init__.py", "", "a namespace folder has none"),
    "a namespace folder with an init file": Case("cli/streamserve/__init__.py", "", "a namespace folder has none"),
    "a regular package below the namespace is fine": Case("cli/streamserve/cli/__init__.py", "", None),
    "a module of 601 lines": Case("cli/streamserve/cli/a.py", "x = 1\n" * 601, "601 lines"),
    "a module of 600 lines is fine": Case("cli/streamserve/cli/a.py", "x = 1\n" * 600, None),
    "generated code may be long": Case("proto/streamserve/v1/a_pb2.py", "x = 1\n" * 900, None),
    "a lock file": Case("uv.lock", "", "lock files name registry hosts"),
    "a path of one machine": Case("docs/a.md", f"see {MACHINE}", "a path of one machine"),
    "a folder that only looks like one is fine": Case("docs/a.md", "see examples/work/main.py", None),
    "a registry's host": Case("docs/a.md", f"from {REGISTRY}", "is a registry host"),
    "unfinished work": Case("cli/streamserve/cli/a.py", f"# {MARK}: later", "finish it"),
    "a test that skips": Case("tests/unit/test_a.py", f"{SKIP}('no')", "a test runs and can fail"),
    "a large file": Case("bench/results/a.json", "{}", "only the tiny models' weights", size_bytes=2_000_000),
    "the tiny weights are fine": Case("examples/models/tiny-target/model.safetensors", "", None, size_bytes=8_000_000),
    "a link that leads nowhere": Case("docs/a.md", "[b](b.md)", "leads nowhere (docs/b.md does not exist)"),
    "a link to a place in another file is fine": Case("docs/a.md", "[r](../README.md#start)", None),
    "a link to a folder is fine": Case("docs/a.md", "[d](../docs/)", None),
    "a link to the web is fine": Case("docs/a.md", "[w](https://example.com/x)", None),
    "a link inside code is not a link": Case("docs/a.md", "`[b](b.md)`", None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_house_rules(case: Case, script: Callable[[str], ModuleType]) -> None:
    rules = script("house_rules")
    files = {"README.md": rules.File(0, ""), case.path: rules.File(case.size_bytes, case.text)}
    found = rules.problems(files)
    if case.says is None:
        assert found == []
    else:
        assert [case.says in line and line.startswith(case.path) for line in found] == [True]
