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
from streamserve.contract.streampair.policies import Speculation, StaticStep
from streamserve.contract.streampair.rule import Cel, Entry, Rule, here, literal, never

ADAPTIVE = literal(sorted(ADAPTIVE_POLICIES))

_SPECULATION: Path = ("spec", "speculation")
_MAX = "(has(self.depth.max) ? self.depth.max : self.maxDepth)"
_STEPS = literal(list(range(1, 32)))
"""The rows of a table after the first; CEL walks over values, and the rule is about neighbours."""


def _has_draft_where_needed(spec: Speculation) -> bool:
    return spec.method not in METHODS_WITH_DRAFT or spec.draft is not None


def _has_no_draft_where_unused(spec: Speculation) -> bool:
    return spec.method not in METHODS_WITHOUT_DRAFT or spec.draft is None


def _fixed_within_bounds(spec: Speculation) -> bool:
    fixed = spec.depth.fixed
    return spec.policy is not DepthPolicy.FIXED or fixed is None or spec.depth.min <= fixed <= spec.depth_max


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
        message="is required by method {method}: give draft.name, or choose method Ngram or None",
        values=lambda spec: {"method": spec.method},
        cel=(
            Cel(
                f"!(self.method in {literal(sorted(METHODS_WITH_DRAFT))}) || has(self.draft)",
                {"method": "self.method"},
                at=("draft",),
            ),
        ),
    ),
    Rule[Speculation](
        id="no-draft-where-the-method-has-none",
        scope=_SPECULATION,
        at=here("draft"),
        holds=_has_no_draft_where_unused,
        message="is not used by method {method}: remove it, or choose DraftModel, Eagle or Eagle3",
        values=lambda spec: {"method": spec.method},
        cel=(
            Cel(
                f"!(self.method in {literal(sorted(METHODS_WITHOUT_DRAFT))}) || !has(self.draft)",
                {"method": "self.method"},
                at=("draft",),
            ),
        ),
    ),
    Rule[Speculation](
        id="depth-min-at-most-max",
        scope=_SPECULATION,
        at=here("depth", "min"),
        holds=lambda spec: spec.depth.min <= spec.depth_max,
        message="{min} is above the maximum depth {max}: lower min or raise max",
        values=lambda spec: {"min": spec.depth.min, "max": spec.depth_max},
        cel=(Cel(f"self.depth.min <= {_MAX}", {"min": "self.depth.min", "max": _MAX}, at=("depth", "min")),),
    ),
    Rule[Speculation](
        id="depth-max-at-most-max-depth",
        scope=_SPECULATION,
        at=here("depth", "max"),
        holds=lambda spec: spec.depth_max <= spec.max_depth,
        message="{max} is above maxDepth {built}: lower max, or raise maxDepth (cold: replaces lanes)",
        values=lambda spec: {"max": spec.depth_max, "built": spec.max_depth},
        cel=(Cel(f"{_MAX} <= self.maxDepth", {"max": _MAX, "built": "self.maxDepth"}, at=("depth", "max")),),
    ),
    Rule[Speculation](
        id="fixed-depth-at-most-max-depth",
        scope=_SPECULATION,
        at=here("depth", "fixed"),
        holds=lambda spec: spec.depth.fixed is None or spec.depth.fixed <= spec.max_depth,
        message="{fixed} is above maxDepth {built}: lower it, or raise maxDepth (cold: replaces lanes)",
        values=lambda spec: {"fixed": spec.depth.fixed, "built": spec.max_depth},
        cel=(
            Cel(
                "!has(self.depth.fixed) || self.depth.fixed <= self.maxDepth",
                {"fixed": "self.depth.fixed", "built": "self.maxDepth"},
                at=("depth", "fixed"),
            ),
        ),
    ),
    Rule[Speculation](
        id="fixed-depth-within-bounds",
        scope=_SPECULATION,
        at=here("depth", "fixed"),
        holds=_fixed_within_bounds,
        message="{fixed} is outside depth.min..depth.max {min}..{max} with policy Fixed: move it inside",
        values=lambda spec: {"fixed": spec.depth.fixed, "min": spec.depth.min, "max": spec.depth_max},
        cel=(
            Cel(
                "self.policy != 'Fixed' || !has(self.depth.fixed) || "
                f"(self.depth.min <= self.depth.fixed && self.depth.fixed <= {_MAX})",
                {"fixed": "self.depth.fixed", "min": "self.depth.min", "max": _MAX},
                at=("depth", "fixed"),
            ),
        ),
    ),
    Rule[Speculation](
        id="adaptive-policy-needs-a-method-of-varying-depth",
        scope=_SPECULATION,
        at=here("method"),
        holds=lambda spec: spec.method not in METHODS_OF_CONSTANT_DEPTH or spec.policy not in ADAPTIVE_POLICIES,
        message=(
            "{method} crashes in vLLM when the depth varies, and policy {policy} varies it: "
            "choose policy Fixed or Off, or another method"
        ),
        values=lambda spec: {"method": spec.method, "policy": spec.policy},
        cel=(
            Cel(
                f"!(self.method in {literal(sorted(METHODS_OF_CONSTANT_DEPTH))}) || !(self.policy in {ADAPTIVE})",
                {"method": "self.method", "policy": "self.policy"},
                at=("method",),
            ),
        ),
    ),
    Rule[Speculation](
        id="static-table-only-with-policy-static",
        scope=_SPECULATION,
        at=here("staticTable"),
        holds=lambda spec: not spec.static_table or spec.policy is DepthPolicy.STATIC,
        message="is for policy Static and the policy is {policy}: remove it or change the policy",
        values=lambda spec: {"policy": spec.policy},
        cel=(
            Cel(
                "self.staticTable.size() == 0 || self.policy == 'Static'",
                {"policy": "self.policy"},
                at=("staticTable",),
            ),
        ),
    ),
    Rule[Speculation](
        id="policy-static-needs-its-table",
        scope=_SPECULATION,
        at=here("staticTable"),
        holds=lambda spec: spec.policy is not DepthPolicy.STATIC or bool(spec.static_table),
        message="is empty and policy Static reads it: add rows such as {{maxBatch: 4, depth: 5}}",
        cel=(Cel("self.policy != 'Static' || self.staticTable.size() > 0", at=("staticTable",)),),
    ),
    Rule[Entry](
        id="static-table-sorted",
        scope=(*_SPECULATION, "staticTable"),
        each=_unsorted,
        at=lambda entry: entry.at,
        holds=never,
        message="{batch} is not above the row before it: sort the rows by maxBatch",
        values=lambda entry: {"batch": entry.value},
        cel=(
            Cel(
                f"{_STEPS}.all(i, i >= self.size() || self[i - 1].maxBatch < self[i].maxBatch)",
                {"batch": "self[found].maxBatch"},
                found=f"{_STEPS}.filter(i, i < self.size() && self[i - 1].maxBatch >= self[i].maxBatch)[0]",
            ),
        ),
    ),
    Rule[Entry](
        id="static-table-within-max-depth",
        scope=_SPECULATION,
        each=_deep_steps,
        at=lambda entry: entry.at,
        holds=never,
        message="{depth} is above maxDepth {built}: lower it or raise maxDepth",
        values=lambda entry: {"depth": entry.value[0], "built": entry.value[1]},
        cel=(
            Cel(
                "self.staticTable.all(row, row.depth <= self.maxDepth)",
                {"depth": "found.depth", "built": "self.maxDepth"},
                found="self.staticTable.filter(row, row.depth > self.maxDepth)[0]",
                at=("staticTable",),
            ),
        ),
    ),
)
