"""Rules between fields, as a table: what must hold, where it is shown, and what to do when it does not.

Bounds of one field live in its type; what is not built yet is in `releases.py`. Every rule is a row of `RULES`
and has its good and bad cases in tests/contract/streampair/cases.yaml; a rule that no bad case hits fails a test.
"""

from typing import Any

from streamserve.contract.streampair import (
    rules_engine,
    rules_json_flags,
    rules_pods,
    rules_resources,
    rules_speculation,
    rules_volumes,
)
from streamserve.contract.streampair.enums import RoutingPolicy
from streamserve.contract.streampair.policies import Ratio, Routing, Update
from streamserve.contract.streampair.resource import StreamPair, StreamPairSpec
from streamserve.contract.streampair.rule import Cel, Entry, Finding, Rule, here, never, repeated, repeated_cel
from streamserve.contract.streampair.rules_volumes import SOURCES
from streamserve.contract.streampair.workers import Source

LONGEST_CHILD_SUFFIX = "-prefill-255-7-" + "x" * 10
"""Pod `{pair}-{role}-{lane}-{replica}-{revision}`; every other child's name is shorter."""

MAX_NAME_LENGTH = 63 - len(LONGEST_CHILD_SUFFIX)


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


def _differing_tokens(spec: StreamPairSpec) -> list[Source]:
    """The draft's source where its token is not the model's; a pod has room for one."""
    source, draft = spec.model.source, spec.speculation.draft
    given = draft.source if draft else None
    if source is None or given is None or source.hub is None or given.hub is None:
        return []
    one, other = source.hub.token_secret, given.hub.token_secret
    return [given] if one and other and one != other else []


_MODEL_TOKEN, _DRAFT_TOKEN = "self.model.source.hub.tokenSecret", "self.speculation.draft.source.hub.tokenSecret"


def _differ(part: str) -> str:
    return f"{_MODEL_TOKEN}.{part} != {_DRAFT_TOKEN}.{part}"


def _has(path: str) -> str:
    """Whether a path below self is there, each part of it asked for in turn."""
    parts = path.split(".")
    return " && ".join(f"has({'.'.join(parts[:end])})" for end in range(3, len(parts) + 1))


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
        each=lambda model: repeated(list(model.served_names)),
        at=lambda entry: ("servedNames", *entry.at),
        holds=never,
        message="'{name}' is listed twice: remove one",
        values=lambda entry: {"name": entry.value},
        cel=(repeated_cel("servedNames", "x"),),
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
        for scope in SOURCES
    ),
    Rule[Source](
        id="one-hub-token",
        scope=("spec",),
        each=_differing_tokens,
        at=here("speculation", "draft", "source", "hub", "tokenSecret"),
        holds=never,
        message="differs from the model's and a pod has one token: name a token that may read both, use it for both",
        cel=(
            Cel(
                f"!({_has(_MODEL_TOKEN)} && {_has(_DRAFT_TOKEN)} && ({_differ('name')} || {_differ('key')}))",
                at=("speculation", "draft", "source", "hub", "tokenSecret"),
            ),
        ),
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
    *rules_json_flags.RULES,
    *rules_speculation.RULES,
    Rule[Entry](
        id="workload-names-unique",
        scope=("spec", "slo"),
        each=lambda slo: repeated([row.name for row in slo.workloads]),
        at=lambda entry: ("workloads", *entry.at, "name"),
        holds=never,
        message="'{name}' is listed twice: merge the two rows",
        values=lambda entry: {"name": entry.value},
        cel=(repeated_cel("workloads", "x.name"),),
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
        each=lambda admission: repeated([tenant.name for tenant in admission.tenants]),
        at=lambda entry: ("tenants", *entry.at, "name"),
        holds=never,
        message="'{name}' is listed twice: merge the two rows",
        values=lambda entry: {"name": entry.value},
        cel=(repeated_cel("tenants", "x.name"),),
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
        holds=lambda update: update.unavailable_lanes + update.max_surge > 0,
        message="and maxSurge are both 0, so no lane could ever be replaced: set one of them to 1",
        cel=(
            Cel(
                "!has(self.maxUnavailable) || self.maxUnavailable + self.maxSurge > 0",
                at=("maxUnavailable",),
            ),
        ),
    ),
    *rules_pods.RULES,
    *rules_volumes.RULES,
    *rules_resources.RULES,
)
