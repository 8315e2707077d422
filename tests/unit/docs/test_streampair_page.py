"""docs/operate/streampair.md is what hack/streampair_page.py prints, and leaves out no field of the CRDs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operate" / "streampair.md"
FIELD = re.compile(r"^\| `([\w.\[\]]+)` \|", re.M)
ALIKE = re.compile(r"^(decode|router)\.template\.")


def fields(node: dict[str, Any], path: str) -> Iterator[str]:
    """Every field of the schema that has no fields of its own."""
    for name, inner in node.get("properties", {}).items():
        below = inner.get("items", inner) if isinstance(inner.get("items", inner), dict) else inner
        if "properties" in below:
            yield from fields(below, f"{path}{name}{'[]' if 'items' in inner else ''}.")
        else:
            yield path + name


@pytest.mark.parametrize("name", ["streampairs", "streampairscalers"])
def test_every_field_of_the_crd_is_on_the_page(name: str) -> None:
    crd = YAML(typ="safe").load(ROOT / "crds" / f"{name}.yaml")
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    wanted = {*fields(root["spec"], ""), *fields(root["status"], "status.")}
    missing = wanted - set(FIELD.findall(PAGE.read_text()))
    assert {path for path in missing if not ALIKE.match(path)} == set()


def test_the_page_is_what_its_script_prints() -> None:
    script = ROOT / "hack" / "streampair_page.py"
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == PAGE.read_text(), "run make generate"
