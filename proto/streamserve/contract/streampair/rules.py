"""Rules between fields, as a table: what must hold, where it is shown, and what to do when it does not.

Bounds of one field live in its type; what is not built yet is in `releases.py`. Every rule is a row of `RULES`
and has its good and bad cases in tests/contract/streampair/cases.yaml; a rule that no bad case hits fails a test.
"""

import re
from typing import Any

from streamserve.contract.streampair import rules_engine, rules_speculation
from streamserve.contract.streampair.enums import RoutingPolicy
from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.policies import Ratio, Routing, Update
from streamserve.contract.streampair.resource import StreamPair, StreamPairSpec
from streamserve.contract.streampair.rule import Cel, Entry, Finding, Rule, here, literal, never
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


_HAS_HUB, _HAS_CLAIM, _HAS_PATH = "has(self.hub)", "has(self.persistentVolumeClaim)", "has(self.hostPath)"
_WITH_CLAIM = f"{_HAS_PATH} ? 'hub and persistentVolumeClaim and hostPath' : 'hub and persistentVolumeClaim'"
_WITH_PATH = f"{_HAS_HUB} ? 'hub and hostPath' : 'persistentVolumeClaim and hostPath'"


def _repeated(names: list[str]) -> list[Entry]:
    return [Entry((index,), name) for index, name in enumerate(names) if name in names[:index]]


def _repeated_rule(items: str, name: str) -> Cel:
    """`name` is the expression of an item's name, where the item is called x."""
    other = name.replace("x", "y", 1)
    return Cel(
        f"self.{items}.all(x, self.{items}.exists_one(y, {name} == {other}))",
        {"name": name.replace("x", "found", 1)},
        found=f"self.{items}.filter(x, !self.{items}.exists_one(y, {name} == {other}))[0]",
        at=(items,),
    )


def _ratio_reached(spec: StreamPairSpec) -> bool:
    decode, prefill, ratio = 100 * spec.decode.replicas, spec.prefill.replicas, spec.ratio
    low = ratio.min_decode_per_prefill_percent * prefill
    high = ratio.max_decode_per_prefill_percent * prefill
    return low > high or low <= decode <= high


_LOW, _HIGH = "self.ratio.minDecodePerPrefillPercent", "self.ratio.maxDecodePerPrefillPercent"
_RATIO_REACHED = (
    f"{_LOW} > {_HIGH} || ({_LOW} * self.prefill.replicas <= 100 * self.decode.replicas && "
    f"100 * self.decode.replicas <= {_HIGH} * self.prefill.replicas)"
)


def _owned_env(template: Template) -> list[Entry]:
    return [
        Entry(("env", index, "name"), variable.name)
        for index, variable in enumerate(template.env)
        if OWNED_ENV.fullmatch(variable.name)
    ]


_WEIGHTS = ("prefillQueue", "transfer", "decodeStep", "kvPressure", "slo")

RULES: tuple[Rule[Any], ...] = (
    Rule[StreamPair](
        id="child-names-fit",
        scope=(),
        at=here("metadata", "name"),
        holds=lambda pair: len(pair.metadata.name) <= MAX_NAME_LENGTH,
        message=f"is {{length}} characters long; names of its pods would pass 63: use at most {MAX_NAME_LENGTH}",
        values=lambda pair: {"length": len(pair.metadata.name)},
        cel=(
            Cel(
                f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
                {"length": "self.metadata.name.size()"},
                at=("metadata", "name"),
            ),
        ),
    ),
    Rule[Entry](
        id="served-names-unique",
        scope=("spec", "model"),
        each=lambda model: _repeated(list(model.served_names)),
        at=lambda entry: ("servedNames", *entry.at),
        holds=never,
        message="'{name}' is listed twice: remove one",
        values=lambda entry: {"name": entry.value},
        cel=(_repeated_rule("servedNames", "x"),),
    ),
    *(
        Rule[Source](
            id="one-source",
            scope=scope,
            at=lambda source: (_given_sources(source)[1],),
            holds=lambda source: len(_given_sources(source)) <= 1,
            message="{given} are both given: keep one; weights have one source",
            values=lambda source: {"given": " and ".join(_given_sources(source))},
            cel=(
                Cel(f"!({_HAS_HUB} && {_HAS_CLAIM})", {"given": _WITH_CLAIM}, at=("persistentVolumeClaim",)),
                Cel(f"!({_HAS_PATH} && {_HAS_HUB} != {_HAS_CLAIM})", {"given": _WITH_PATH}, at=("hostPath",)),
            ),
        )
        for scope in _SOURCES
    ),
    Rule[Ratio](
        id="ratio-min-at-most-max",
        scope=("spec", "ratio"),
        at=here("minDecodePerPrefillPercent"),
        holds=lambda ratio: ratio.min_decode_per_prefill_percent <= ratio.max_decode_per_prefill_percent,
        message="{min} is above maxDecodePerPrefillPercent {max}: lower it or raise the maximum",
        values=lambda ratio: {
            "min": ratio.min_decode_per_prefill_percent,
            "max": ratio.max_decode_per_prefill_percent,
        },
        cel=(
            Cel(
                "self.minDecodePerPrefillPercent <= self.maxDecodePerPrefillPercent",
                {"min": "self.minDecodePerPrefillPercent", "max": "self.maxDecodePerPrefillPercent"},
                at=("minDecodePerPrefillPercent",),
            ),
        ),
    ),
    Rule[StreamPairSpec](
        id="ratio-holds-for-replicas",
        scope=("spec",),
        at=here("ratio"),
        holds=_ratio_reached,
        message=(
            "{decode} decode for {prefill} prefill pods is {percent} %, outside {min}..{max} %: "
            "change the replicas, or widen spec.ratio"
        ),
        values=lambda spec: {
            "decode": spec.decode.replicas,
            "prefill": spec.prefill.replicas,
            "percent": 100 * spec.decode.replicas // spec.prefill.replicas,
            "min": spec.ratio.min_decode_per_prefill_percent,
            "max": spec.ratio.max_decode_per_prefill_percent,
        },
        cel=(
            Cel(
                _RATIO_REACHED,
                {
                    "decode": "self.decode.replicas",
                    "prefill": "self.prefill.replicas",
                    "percent": "100 * self.decode.replicas / self.prefill.replicas",
                    "min": _LOW,
                    "max": _HIGH,
                },
                at=("ratio",),
            ),
        ),
    ),
    *rules_engine.RULES,
    *rules_speculation.RULES,
    Rule[Entry](
        id="workload-names-unique",
        scope=("spec", "slo"),
        each=lambda slo: _repeated([row.name for row in slo.workloads]),
        at=lambda entry: ("workloads", *entry.at, "name"),
        holds=never,
        message="'{name}' is listed twice: merge the two rows",
        values=lambda entry: {"name": entry.value},
        cel=(_repeated_rule("workloads", "x.name"),),
    ),
    Rule[Entry](
        id="workload-name-is-not-default",
        scope=("spec", "slo"),
        each=lambda slo: [Entry((i,), row.name) for i, row in enumerate(slo.workloads)],
        at=lambda entry: ("workloads", *entry.at, "name"),
        holds=lambda entry: entry.value != "default",
        message="'default' is the class of every other request: write these targets into slo.default",
        cel=(Cel("self != 'default'", inner=("workloads", "[]", "name")),),
    ),
    Rule[Routing](
        id="some-weight-counts",
        scope=("spec", "routing"),
        at=here("weightsPercent"),
        holds=lambda routing: (
            routing.policy is not RoutingPolicy.FLOW_GUARD or any(routing.weights_percent.model_dump().values())
        ),
        message="every weight is 0, so FlowGuard could not tell lanes apart: set one above 0",
        cel=(
            Cel(
                "self.policy != 'FlowGuard' || "
                + " + ".join(f"self.weightsPercent.{weight}" for weight in _WEIGHTS)
                + " > 0",
                at=("weightsPercent",),
            ),
        ),
    ),
    Rule[Entry](
        id="tenant-names-unique",
        scope=("spec", "admission"),
        each=lambda admission: _repeated([tenant.name for tenant in admission.tenants]),
        at=lambda entry: ("tenants", *entry.at, "name"),
        holds=never,
        message="'{name}' is listed twice: merge the two rows",
        values=lambda entry: {"name": entry.value},
        cel=(_repeated_rule("tenants", "x.name"),),
    ),
    Rule[StreamPair](
        id="shared-router-is-another",
        scope=(),
        at=here("spec", "router", "shared"),
        holds=lambda pair: pair.spec.router.shared != pair.metadata.name,
        message="'{name}' is this StreamPair itself: name another, or leave it empty",
        values=lambda pair: {"name": pair.metadata.name},
        cel=(
            Cel(
                "self.spec.router.shared != self.metadata.name",
                {"name": "self.metadata.name"},
                at=("spec", "router", "shared"),
            ),
        ),
    ),
    Rule[Update](
        id="update-can-progress",
        scope=("spec", "update"),
        at=here("maxUnavailable"),
        holds=lambda update: update.max_unavailable + update.max_surge > 0,
        message="and maxSurge are both 0, so no lane could ever be replaced: set one of them to 1",
        cel=(Cel("self.maxUnavailable + self.maxSurge > 0", at=("maxUnavailable",)),),
    ),
    *(
        Rule[Entry](
            id="env-not-ours",
            scope=scope,
            each=_owned_env,
            at=lambda entry: entry.at,
            holds=never,
            message="{name} is set by StreamServe: remove it from the template",
            values=lambda entry: {"name": entry.value},
            cel=(
                Cel(
                    f"!self.matches({literal(f'^({OWNED_ENV.pattern})$')})",
                    {"name": "self"},
                    inner=("env", "[]", "name"),
                ),
            ),
        )
        for scope in _TEMPLATES
    ),
    *(
        Rule[str](
            id="labels-not-ours",
            scope=(*scope, kind),
            each=list,
            at=lambda key: (key,),
            holds=lambda key: OWNED_PREFIX not in key,
            message=f"{{key}} selects our pods: use another prefix than {OWNED_PREFIX}",
            values=lambda key: {"key": key},
            cel=(
                Cel(
                    f"!self.exists(key, key.contains({literal(OWNED_PREFIX)}))",
                    {"key": "found"},
                    found=f"self.filter(key, key.contains({literal(OWNED_PREFIX)}))[0]",
                ),
            ),
        )
        for scope in _TEMPLATES
        for kind in ("labels", "annotations")
    ),
)
