"""docs/operate/runbooks.md has a section for every alert, with its severity and its patience, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operate" / "runbooks.md"
ALERTS = ROOT / "charts" / "streamserve" / "alerts.yaml"
SECTION = re.compile(r"^## (\w+)\n\*\*(\w+)\*\* after (\w+): (.*?)(?=^## |\Z)", re.M | re.S)


def test_every_alert_has_a_section_with_its_severity_and_patience() -> None:
    told = {name: (severity, patience) for name, severity, patience, _ in SECTION.findall(PAGE.read_text())}
    groups = YAML(typ="safe").load(ALERTS)["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert told == {rule["alert"]: (rule["labels"]["severity"], rule["for"]) for rule in rules}


def test_no_heading_is_anything_else() -> None:
    assert len(re.findall(r"^## ", PAGE.read_text(), re.M)) == len(SECTION.findall(PAGE.read_text()))


def test_every_section_says_the_effect_where_to_look_and_what_to_do() -> None:
    for name, _, _, text in SECTION.findall(PAGE.read_text()):
        for part in ("**Effect** ", "**Look** ", "**Do** "):
            assert text.count(f"- {part}") == 1, f"{name}: {part}"
