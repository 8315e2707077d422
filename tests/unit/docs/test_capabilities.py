"""Every claim of docs/operate/capabilities.md names tests, and each of them exists where the link leads."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "operate" / "capabilities.md"
CLAIM = re.compile(r"^\| (?!claim|level|-|\d )([^|]+) \| ([^|]*) \|$", re.M)
LINK = re.compile(r"\[`(test_\w+)`\]\(([^)#]+\.py)\)")


def claims() -> dict[str, str]:
    return dict(CLAIM.findall(PAGE.read_text()))


@cache
def functions_in(path: Path) -> frozenset[str]:
    found = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("claim", sorted(claims()))
def test_a_claim_names_tests_that_exist(claim: str) -> None:
    named = LINK.findall(claims()[claim])
    assert named
    assert LINK.sub("", claims()[claim]).strip(", ") == ""
    for name, place in named:
        assert name in functions_in((PAGE.parent / place).resolve()), f"{place} has no {name}"


def test_every_level_claims_something() -> None:
    for section in re.split(r"^## (?=\d)", PAGE.read_text(), flags=re.M)[1:]:
        assert CLAIM.search(section), section.partition("\n")[0]
