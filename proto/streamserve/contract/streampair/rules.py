"""Rules between fields, as a table: what must hold, where it is shown, and what to do when it does not.

Bounds of one field live in its type; what is not built yet is in `releases.py`. Every rule is a row of `RULES`
and has its good and bad cases in tests/contract/streampair/cases.py; a rule that no bad case hits fails a test.
"""

import re
from typing import Any

from streamserve.contract.streampair import rules_engine, rules_speculation
from streamserve.contract.streampair.enums import RoutingPolicy
from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.policies import Ratio, Routing, Update
from streamserve.contract.streampair.resource import StreamPair, StreamPairSpec
from streamserve.contract.streampair.rule import Entry, Finding, Rule, here, never
from streamserve.contract.streampair.workers import Source, Template

LONGEST_CHILD_SUFFIX = "-prefill-255-7-" + "x" * 10
"""Pod `{pair}-{role}-{lane}-{replica}-{revision}`; every other child's name is shorter."""

MAX_NAME_LENGTH = 63 - len(LONGEST_CHILD_SUFFIX)

OWNED_ENV = re.compile(r"STREAMSERVE_.*|VLLM_NIXL_SIDE_CHANNEL_(HOST|PORT)|POD_(NAME|IP|UID)")
OWNED_PREFIX = "streamserve.io/"

_SOURCES: tuple[Path, ...] = (("spec", "model", "source"), ("spec", "speculation", "draft", "source"))
_TEMPLATES: tuple[Path, ...] = (
    ("spec", "prefill", "template"),
    ("spec", "decode", "template"),
    ("spec", "router", "template"),
)


def check(pair: StreamPair) -> list[Finding]:
    """Every rule that this pair breaks, in the order of the table."""
    return [finding for rule in RULES for finding in rule.findings(pair)]


def _given_sources(source: Source) -> list[str]:
    kinds = {
        "hub": source.hub,
        "persistentVolumeClaim": source.persistent_volume_claim,
        "hostPath": source.host_path,
    }
    return [name for name, value in kinds.items() if value is not None]


def _repeated(names: list[str]) -> list[Entry]:
    return [Entry((index,), name) for index, name in enumerate(names) if name in names[:index]]


def _ratio_reached(spec: StreamPairSpec) -> bool:
    decode, prefill, ratio = 100 * spec.decode.replicas, spec.prefill.replicas, spec.ratio
    low = ratio.min_decode_per_prefill_percent * prefill
    high = ratio.max_decode_per_prefill_percent * prefill
    return low > high or low <= decode <= high


def _ratio_message(spec: StreamPairSpec) -> str:
    percent = 100 * spec.decode.replicas / spec.prefill.replicas
    return (
        f"{spec.decode.replicas} decode for {spec.prefill.replicas} prefill pods is {percent:.0f} %, outside "
        f"{spec.ratio.min_decode_per_prefill_percent}..{spec.ratio.max_decode_per_prefill_percent} %: "
        "change the replicas, or widen spec.ratio"
    )


def _owned_env(template: Template) -> list[Entry]:
    found = []
    for index, variable in enumerate(template.env):
        name = variable.get("name")
        if isinstance(name, str) and OWNED_ENV.fullmatch(name):
            found.append(Entry(("env", index, "name"), name))
    return found


def _owned_keys(template: Template) -> list[Entry]:
    maps = {"labels": template.labels, "annotations": template.annotations}
    return [Entry((kind, key), key) for kind, keys in maps.items() for key in keys if OWNED_PREFIX in key]


RULES: tuple[Rule[Any], ...] = (
    Rule[StreamPair](
        id="child-names-fit",
        scope=(),
        at=here("metadata", "name"),
        holds=lambda pair: len(pair.metadata.name) <= MAX_NAME_LENGTH,
        message=lambda pair: (
            f"is {len(pair.metadata.name)} characters long; names of its pods would pass 63: "
            f"use at most {MAX_NAME_LENGTH}"
        ),
    ),
    Rule[Entry](
        id="served-names-unique",
        scope=("spec", "model"),
        each=lambda model: _repeated(list(model.served_names)),
        at=lambda entry: ("servedNames", *entry.at),
        holds=never,
        message=lambda entry: f"{entry.value!r} is listed twice: remove one",
    ),
    *(
        Rule[Source](
            id="one-source",
            scope=scope,
            at=lambda source: (_given_sources(source)[1],),
            holds=lambda source: len(_given_sources(source)) <= 1,
            message=lambda source: (
                f"{' and '.join(_given_sources(source))} are both given: keep one; weights have one source"
            ),
        )
        for scope in _SOURCES
    ),
    Rule[Ratio](
        id="ratio-min-at-most-max",
        scope=("spec", "ratio"),
        at=here("minDecodePerPrefillPercent"),
        holds=lambda ratio: ratio.min_decode_per_prefill_percent <= ratio.max_decode_per_prefill_percent,
        message=lambda ratio: (
            f"{ratio.min_decode_per_prefill_percent} is above maxDecodePerPrefillPercent "
            f"{ratio.max_decode_per_prefill_percent}: lower it or raise the maximum"
        ),
    ),
    Rule[StreamPairSpec](
        id="ratio-holds-for-replicas",
        scope=("spec",),
        at=here("ratio"),
        holds=_ratio_reached,
        message=_ratio_message,
    ),
    *rules_engine.RULES,
    *rules_speculation.RULES,
    Rule[Entry](
        id="workload-names-unique",
        scope=("spec", "slo"),
        each=lambda slo: _repeated([row.name for row in slo.workloads]),
        at=lambda entry: ("workloads", *entry.at, "name"),
        holds=never,
        message=lambda entry: f"{entry.value!r} is listed twice: merge the two rows",
    ),
    Rule[Entry](
        id="workload-name-is-not-default",
        scope=("spec", "slo"),
        each=lambda slo: [Entry((i,), row.name) for i, row in enumerate(slo.workloads)],
        at=lambda entry: ("workloads", *entry.at, "name"),
        holds=lambda entry: entry.value != "default",
        message=lambda _: "'default' is the class of every other request: write these targets into slo.default",
    ),
    Rule[Routing](
        id="some-weight-counts",
        scope=("spec", "routing"),
        at=here("weightsPercent"),
        holds=lambda routing: (
            routing.policy is not RoutingPolicy.FLOW_GUARD or any(routing.weights_percent.model_dump().values())
        ),
        message=lambda _: "every weight is 0, so FlowGuard could not tell lanes apart: set one above 0",
    ),
    Rule[Entry](
        id="tenant-names-unique",
        scope=("spec", "admission"),
        each=lambda admission: _repeated([tenant.name for tenant in admission.tenants]),
        at=lambda entry: ("tenants", *entry.at, "name"),
        holds=never,
        message=lambda entry: f"{entry.value!r} is listed twice: merge the two rows",
    ),
    Rule[StreamPair](
        id="shared-router-is-another",
        scope=(),
        at=here("spec", "router", "shared"),
        holds=lambda pair: pair.spec.router.shared != pair.metadata.name,
        message=lambda pair: f"{pair.metadata.name!r} is this StreamPair itself: name another, or leave it empty",
    ),
    Rule[Update](
        id="update-can-progress",
        scope=("spec", "update"),
        at=here("maxUnavailable"),
        holds=lambda update: update.max_unavailable + update.max_surge > 0,
        message=lambda _: "and maxSurge are both 0, so no lane could ever be replaced: set one of them to 1",
    ),
    *(
        Rule[Entry](
            id="env-not-ours",
            scope=scope,
            each=_owned_env,
            at=lambda entry: entry.at,
            holds=never,
            message=lambda entry: f"{entry.value} is set by StreamServe: remove it from the template",
        )
        for scope in _TEMPLATES
    ),
    *(
        Rule[Entry](
            id="labels-not-ours",
            scope=scope,
            each=_owned_keys,
            at=lambda entry: entry.at,
            holds=never,
            message=lambda entry: f"{entry.value} selects our pods: use another prefix than {OWNED_PREFIX}",
        )
        for scope in _TEMPLATES
    ),
)
