"""docs/operate/troubleshooting.md has a heading for every reason that the operator can write, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamserve.operator
from streamserve.operator import conditions
from streamserve.operator.canary.law import HOLDING
from streamserve.operator.canary.memory import RollBackReason

ROOT = Path(__file__).parents[3]
OPERATE = ROOT / "docs" / "operate"
PAGE = OPERATE / "troubleshooting.md"
ENTRY = re.compile(r"^### (\w+)\n(.*?)(?=^##|\Z)", re.M | re.S)
ANCHOR = re.compile(r"\]\((\w*(?:\.md)?)#([\w-]+)\)")


def reasons() -> set[str]:
    """Every text that is given to a Condition as its reason, wherever in the operator, the causes of Degraded, and what
    the law of canaries says."""
    (package,) = streamserve.operator.__path__
    found = {*conditions._CAUSES, HOLDING, *RollBackReason}
    for module in Path(package).rglob("*.py"):
        for call in ast.walk(ast.parse(module.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Condition":
                found |= set(words(call.args[2])) if len(call.args) > 2 else set()
    return found


def words(part: ast.expr) -> Iterator[str]:
    return (word.value for word in ast.walk(part) if isinstance(word, ast.Constant) and isinstance(word.value, str))


def entries() -> dict[str, str]:
    return dict(ENTRY.findall(PAGE.read_text()))


def test_every_reason_has_a_heading_and_no_heading_is_invented() -> None:
    assert set(entries()) == reasons()


def test_no_reason_has_two_headings() -> None:
    headings = [found[0] for found in ENTRY.findall(PAGE.read_text())]
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("reason", sorted(entries()))
def test_every_entry_says_what_it_means_and_what_to_do(reason: str) -> None:
    text = entries()[reason]
    assert "**Means** " in text
    assert "**Do** " in text


@pytest.mark.parametrize("page", sorted(path.name for path in OPERATE.glob("*.md")))
def test_every_link_to_a_heading_finds_it(page: str) -> None:
    for name, anchor in ANCHOR.findall((OPERATE / page).read_text()):
        there = OPERATE / (name or page)
        if there.exists():
            assert anchor in anchors(there.read_text()), f"{page}: {name}#{anchor}"


def anchors(text: str) -> set[str]:
    """As GitHub makes them: lower case, blanks to dashes, other signs dropped."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
