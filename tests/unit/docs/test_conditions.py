"""docs/operate/conditions.md explains every reason that a condition may have, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from streamserve.operator import conditions
from streamserve.operator.canary.law import HOLDING
from streamserve.operator.canary.memory import RollBackReason

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operate" / "conditions.md"
ROW = re.compile(r"^\| `(\w+)` \| (`[^|]+) \| [^|]+ \|[^|]*\|$", re.M)


def reasons() -> set[str]:
    """Every text that is given to a Condition as its reason, the causes of Degraded, and the words of a canary."""
    tree = ast.parse(Path(conditions.__file__).read_text())
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) >= 3)
    given = [call.args[2] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Condition"]
    words = {
        word.value
        for part in given
        for word in ast.walk(part)
        if isinstance(word, ast.Constant) and isinstance(word.value, str)
    }
    return words | set(conditions._CAUSES) | {HOLDING, *RollBackReason}


def test_every_reason_is_explained_and_no_other() -> None:
    assert {row[1] for row in ROW.finditer(PAGE.read_text())} == reasons()
