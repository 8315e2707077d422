"""Rules about drafting and its depth."""

import itertools
from typing import Any

from streamserve.contract.streampair.enums import (
    ADAPTIVE_POLICIES,
    METHODS_OF_CONSTANT_DEPTH,
    METHODS_WITH_DRAFT,
    METHODS_WITHOUT_DRAFT,
    DepthPolicy,
)
from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.policies import Rollout, Speculation, StaticStep
from streamserve.contract.streampair.rule import Entry, Rule, here, never

_SPECULATION: Path = ("spec", "speculation")


def _has_draft_where_needed(spec: Speculation) -> bool:
    return spec.method not in METHODS_WITH_DRAFT or spec.draft is not None


def _has_no_draft_where_unused(spec: Speculation) -> bool:
    return spec.method not in METHODS_WITHOUT_DRAFT or spec.draft is None


def _fixed_within_bounds(spec: Speculation) -> bool:
    return spec.policy is not DepthPolicy.FIXED or spec.depth.min <= spec.depth_fixed <= spec.depth_max


def _unsorted(table: tuple[StaticStep, ...]) -> list[Entry]:
    pairs = itertools.pairwise(table)
    return [Entry((i + 1, "maxBatch"), b.max_batch) for i, (a, b) in enumerate(pairs) if a.max_batch >= b.max_batch]


def _deep_steps(spec: Speculation) -> list[Entry]:
    return [
        Entry(("staticTable", i, "depth"), (step.depth, spec.max_depth))
        for i, step in enumerate(spec.static_table)
        if step.depth > spec.max_depth
    ]


RULES: tuple[Rule[Any], ...] = (
    Rule[Speculation](
        id="draft-where-the-method-needs-one",
        scope=_SPECULATION,
        at=here("draft"),
        holds=_has_draft_where_needed,
        message=lambda spec: f"is required by method {spec.method}: give draft.name, or choose method Ngram or None",
    ),
    Rule[Speculation](
        id="no-draft-where-the-method-has-none",
        scope=_SPECULATION,
        at=here("draft"),
        holds=_has_no_draft_where_unused,
        message=lambda spec: f"is not used by method {spec.method}: remove it, or choose DraftModel, Eagle or Eagle3",
    ),
    Rule[Speculation](
        id="depth-min-at-most-max",
        scope=_SPECULATION,
        at=here("depth", "min"),
        holds=lambda spec: spec.depth.min <= spec.depth_max,
        message=lambda spec: f"{spec.depth.min} is above the maximum depth {spec.depth_max}: lower min or raise max",
    ),
    Rule[Speculation](
        id="depth-max-at-most-max-depth",
        scope=_SPECULATION,
        at=here("depth", "max"),
        holds=lambda spec: spec.depth_max <= spec.max_depth,
        message=lambda spec: (
            f"{spec.depth_max} is above maxDepth {spec.max_depth}: lower max, or raise maxDepth (cold: replaces lanes)"
        ),
    ),
    Rule[Speculation](
        id="fixed-depth-at-most-max-depth",
        scope=_SPECULATION,
        at=here("depth", "fixed"),
        holds=lambda spec: spec.depth.fixed is None or spec.depth.fixed <= spec.max_depth,
        message=lambda spec: (
            f"{spec.depth.fixed} is above maxDepth {spec.max_depth}: lower it, or raise maxDepth (cold: replaces lanes)"
        ),
    ),
    Rule[Speculation](
        id="fixed-depth-within-bounds",
        scope=_SPECULATION,
        at=here("depth", "fixed"),
        holds=_fixed_within_bounds,
        message=lambda spec: (
            f"{spec.depth_fixed} is outside depth.min..depth.max {spec.depth.min}..{spec.depth_max} "
            "with policy Fixed: move it inside"
        ),
    ),
    Rule[Speculation](
        id="adaptive-policy-needs-a-method-of-varying-depth",
        scope=_SPECULATION,
        at=here("method"),
        holds=lambda spec: spec.method not in METHODS_OF_CONSTANT_DEPTH or spec.policy not in ADAPTIVE_POLICIES,
        message=lambda spec: (
            f"{spec.method} crashes in vLLM when the depth varies, and policy {spec.policy} varies it: "
            "choose policy Fixed or Off, or another method"
        ),
    ),
    Rule[Speculation](
        id="static-table-only-with-policy-static",
        scope=_SPECULATION,
        at=here("staticTable"),
        holds=lambda spec: not spec.static_table or spec.policy is DepthPolicy.STATIC,
        message=lambda spec: f"is for policy Static and the policy is {spec.policy}: remove it or change the policy",
    ),
    Rule[Speculation](
        id="policy-static-needs-its-table",
        scope=_SPECULATION,
        at=here("staticTable"),
        holds=lambda spec: spec.policy is not DepthPolicy.STATIC or bool(spec.static_table),
        message=lambda _: "is empty and policy Static reads it: add rows such as {maxBatch: 4, depth: 5}",
    ),
    Rule[Entry](
        id="static-table-sorted",
        scope=(*_SPECULATION, "staticTable"),
        each=_unsorted,
        at=lambda entry: entry.at,
        holds=never,
        message=lambda entry: f"{entry.value} is not above the row before it: sort the rows by maxBatch",
    ),
    Rule[Entry](
        id="static-table-within-max-depth",
        scope=_SPECULATION,
        each=_deep_steps,
        at=lambda entry: entry.at,
        holds=never,
        message=lambda entry: f"{entry.value[0]} is above maxDepth {entry.value[1]}: lower it or raise maxDepth",
    ),
    Rule[tuple[Rollout, int]](
        id="canary-lanes-below-lanes",
        scope=("spec",),
        each=lambda spec: ((spec.speculation.rollout, spec.lanes),),
        at=here("speculation", "rollout", "canaryLanes"),
        holds=lambda item: item[0].canary_lanes == 0 or item[0].canary_lanes < item[1],
        message=lambda item: (
            f"{item[0].canary_lanes} of {item[1]} lanes leaves none to compare with: use fewer canaries or add lanes"
        ),
    ),
)
