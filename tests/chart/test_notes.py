"""What Helm prints after an install, rendered without a cluster: the notes as an object of a copy of the chart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, RunHelm

Notes = Callable[..., str]
AS_AN_OBJECT = (
    '{kind: ConfigMap, metadata: {name: notes}, data: {notes: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}}}'
)
OPEN = "WARNING: NetworkPolicies of workers and routers are in"


@pytest.fixture(scope="module")
def notes(helm: RunHelm, tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """`notes("scope=Cluster", …)`, on one line."""
    chart: Path = tmp_path_factory.mktemp("chart") / "streamserve"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates" / "notes.yaml").write_text(AS_AN_OBJECT)

    def run(*values: str) -> str:
        done = helm(
            *("template", "streamserve", str(chart), "--namespace", "serving"),
            *("--show-only", "templates/notes.yaml"),
            *(part for value in values for part in ("--set", value)),
        )
        assert done.returncode == 0, done.stderr
        return " ".join(YAML(typ="safe").load(done.stdout)["data"]["notes"].split())

    return run


def test_in_cluster_scope_they_say_where_workers_are_closed_off_and_that_they_are_nowhere_else(notes: Notes) -> None:
    for given, where in ((), "serving"), (("namespaces={llm,chat}",), "chat, llm"):
        said = notes("scope=Cluster", *given)
        assert f"{OPEN}: {where}, and nowhere else." in said
        assert "list it in `namespaces`" in said.partition(OPEN)[2]


def test_with_secrets_of_ones_own_too(notes: Notes) -> None:
    assert OPEN in notes("scope=Cluster", "credentials.create=false", "redis.mode=External")


@pytest.mark.parametrize("values", [("namespaces={llm,chat}",), ("scope=Cluster", "networkPolicy.enabled=false")])
def test_no_such_warning_where_every_namespace_has_them_or_none_is_wanted(
    notes: Notes, values: tuple[str, ...]
) -> None:
    assert OPEN not in notes(*values)
