"""The examples of autoscaling before Kubernetes' own schema and before promtool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import HERE, ROOT
from tests.chart.test_render import VALIDATE

EXAMPLES = ROOT / "examples" / "cluster" / "autoscaling"


@pytest.mark.parametrize("name", ["lanes.yaml", "roles.yaml"])
def test_kubernetes_would_take_the_autoscalers(name: str) -> None:
    done = subprocess.run(
        [str(VALIDATE), "--strict", "-k", "1.35", str(EXAMPLES / name)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_signal_is_what_its_comment_says(tmp_path: Path) -> None:
    """Two lanes with two decode pods each: all numbers are of one lane, but for the requests."""
    yaml = YAML(typ="safe")
    rules = yaml.load(EXAMPLES / "signals.yaml")["spec"]
    yaml.dump(rules, tmp_path / "signals.yaml")
    (tmp_path / "test.yaml").write_text((HERE / "signals_test.yaml").read_text())
    tool = subprocess.run([str(ROOT / "hack" / "promtool.sh")], check=True, capture_output=True, text=True, timeout=300)
    done = subprocess.run(
        [tool.stdout.strip(), "test", "rules", str(tmp_path / "test.yaml")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["expr"] for group in yaml.load(HERE / "signals_test.yaml")["tests"] for case in group["promql_expr_test"]
    }
    assert tested == {rule["record"] for group in rules["groups"] for rule in group["rules"]}
