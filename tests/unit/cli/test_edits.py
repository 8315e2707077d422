"""What an edit takes, and that the revision moves exactly when a process has to be new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamserve.cli.up.edits import has_no_effect_here, judge
from streamserve.cli.up.revision import revision_of
from streamserve.contract.streampair import StreamPair

MakePair = Callable[..., StreamPair]

# edit -> (part of the verdict, its text, whether the revision changes)
CASES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "a depth bound is hot": (
        {"spec.speculation.depth": {"min": 1, "max": 0}},
        "hot",
        "spec.speculation.depth.max 6 → 0",
        False,
    ),
    "lanes are scale": ({"spec.lanes": 3}, "scale", "spec.lanes 2 → 3", False),
    "replicas are scale": ({"spec.decode.replicas": 2}, "scale", "spec.decode.replicas 1 → 2", False),
    "an engine flag is cold": (
        {"spec.engine.args": {"max-model-len": "1024"}},
        "cold",
        "spec.engine.args.max-model-len 2048 → 1024",
        True,
    ),
    "a role's flag is cold": (
        {"spec.decode.engine.args": {"max-num-seqs": "4"}},
        "cold",
        "spec.decode.engine.args.max-num-seqs not set → 4",
        True,
    ),
    "the engine kind is cold": ({"spec.engine.kind": "Simulator"}, "cold", "spec.engine.kind Vllm → Simulator", True),
    "maxDepth is cold": ({"spec.speculation.maxDepth": 8}, "cold", "spec.speculation.maxDepth 6 → 8", True),
    "the draft is cold": (
        {"spec.speculation.draft": {"name": "org/other"}},
        "cold",
        "spec.speculation.draft.name org/draft → org/other",
        True,
    ),
    "pod resources have no effect on one machine": (
        {"spec.decode.resources": {"limits": {"cpu": 2}}},
        "idle",
        "spec.decode.resources.limits.cpu not set → 2",
        False,
    ),
    "router replicas have no effect on one machine": (
        {"spec.router.replicas": 3},
        "idle",
        "spec.router.replicas 2 → 3",
        False,
    ),
    "a surge is honoured here": ({"spec.update.maxSurge": 1}, "hot", "spec.update.maxSurge 0 → 1", False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str, make_pair: MakePair) -> None:
    edits, part, text, changes_revision = CASES[name]
    old, new = make_pair(), make_pair(edits)
    verdict = judge(old, new)
    assert not verdict.refused
    parts = {"hot": verdict.hot, "cold": verdict.cold, "scale": verdict.scale, "idle": verdict.idle}
    assert parts == {"hot": "", "cold": "", "scale": "", "idle": "", part: text}
    assert (revision_of(old) != revision_of(new)) is changes_revision


def test_a_fixed_field_refuses_the_whole_edit(make_pair: MakePair) -> None:
    verdict = judge(make_pair(), make_pair({"spec.model.name": "org/else", "spec.lanes": 5}))
    assert len(verdict.refused) == 1
    assert verdict.refused[0].startswith("spec.model.name org/target → org/else: cannot be changed while it runs")
    assert not verdict.scale


def test_an_edit_of_a_comment_is_nothing(make_pair: MakePair) -> None:
    assert judge(make_pair(), make_pair()).nothing


def test_only_whole_path_parts_are_cluster_settings() -> None:
    assert has_no_effect_here("spec.prefill.template.env[0]")
    assert has_no_effect_here("spec.prefill.scaling.mode")
    assert not has_no_effect_here("spec.prefill.replicas")
    assert not has_no_effect_here("spec.pausedness")
