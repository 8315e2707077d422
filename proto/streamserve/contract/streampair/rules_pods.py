"""Rules about what a template lays over a pod: what of it is ours, and mistakes that the API server would refuse there.

They are told when the StreamPair is applied. Not all of them: the operator rehearses new pods before it drains a lane
for them, and to that are left the kinds of volumes, `affinity`, the names of sysctls, Bidirectional mounts without
privilege, a capability CAP_SYS_ADMIN without escalation, a profile's path with '..', annotations of more than 256 KiB,
and a fraction of a device. Volumes have a file of their own, `rules_volumes.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.pods import (
    EnvVar,
    LabelSelector,
    ProfileType,
    ResourceReference,
    SecurityContext,
    SelectorOperator,
    SelectorRequirement,
    TaintEffect,
    Toleration,
    TolerationOperator,
    TopologySpreadConstraint,
    Unsatisfiable,
)
from streamserve.contract.streampair.rule import Cel, Entry, Rule, here, literal, look_up, never, repeated, repeated_cel
from streamserve.contract.streampair.workers import Template

OWNED_ENV = re.compile(r"STREAMSERVE_.*|VLLM_NIXL_SIDE_CHANNEL_(HOST|PORT)|POD_(NAME|IP|UID)")
OWNED_PREFIX = "streamserve.io/"
OWNED_LABELS = tuple(f"app.kubernetes.io/{name}" for name in ("name", "instance", "part-of", "managed-by", "component"))

TEMPLATES: tuple[Path, ...] = tuple(("spec", part, "template") for part in ("prefill", "decode", "router"))

_SOURCES_OF_ENV = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
_ONE_SOURCE = f"[{', '.join(f'has(self.valueFrom.{name})' for name in _SOURCES_OF_ENV)}].filter(x, x).size() == 1"
_UNITS = ["0", "1", *(f"1{unit}" for unit in ("k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))]
_UNITS_OF_CPU = ["0", "1", "1m"]
_WITH_VALUES = (SelectorOperator.IN, SelectorOperator.NOT_IN)


def whole(pattern: re.Pattern[str]) -> str:
    """The pattern of a full match, as CEL writes it."""
    return literal(f"^({pattern.pattern})$")


def items(*fields: str) -> Callable[[Template], Iterator[Entry]]:
    """Every item of a template's list, or of lists in the items of a list."""

    def walk(node: Any, at: Path, left: tuple[str, ...]) -> Iterator[Entry]:
        if not left:
            yield Entry(at, node)
            return
        found = look_up(node, (left[0],))
        if isinstance(found, tuple):
            for index, item in enumerate(found):
                yield from walk(item, (*at, left[0], index), left[1:])
        elif found is not None:
            yield from walk(found, (*at, left[0]), left[1:])

    return lambda template: walk(template, (), fields)


def each_item(
    rule: str,
    fields: Path,
    at: str,
    holds: Callable[[Any], bool],
    cel: str,
    message: str,
    values: Mapping[str, str] | None = None,
) -> tuple[Rule[Entry], ...]:
    """One row a template: `holds`, and `cel` of self, of each item at `fields`; `values` are fields of the item."""
    shown = values or {}
    names = [str(field) for field in fields if field != "[]"]
    return tuple(
        Rule[Entry](
            id=rule,
            scope=scope,
            each=items(*names),
            at=lambda entry: (*entry.at, at),
            holds=lambda entry: holds(entry.value),
            message=message,
            values=lambda entry: {name: look_up(entry.value, (field,)) for name, field in shown.items()},
            cel=(Cel(cel, {name: f"self.{field}" for name, field in shown.items()}, inner=fields, at=(at,)),),
        )
        for scope in TEMPLATES
    )


def each_once(rule: str, items: str, field: str, shown: str, message: str) -> tuple[Rule[Entry], ...]:
    """One row a template: no two items of a list have the same `field`, which the message calls `shown`."""
    return tuple(
        Rule[Entry](
            id=rule,
            scope=scope,
            each=lambda template: repeated([look_up(item, (field,)) for item in look_up(template, (items,))]),
            at=lambda entry: (items, *entry.at, field),
            holds=never,
            message=message,
            values=lambda entry: {shown: entry.value},
            cel=(repeated_cel(items, f"x.{field}", shown),),
        )
        for scope in TEMPLATES
    )


def _owned_env(template: Template) -> list[Entry]:
    return [
        Entry(("env", index, "name"), variable.name)
        for index, variable in enumerate(template.env)
        if OWNED_ENV.fullmatch(variable.name)
    ]


def _sources_of(variable: EnvVar) -> int:
    """How many sources a variable names; one where it has none at all, which is as it should be."""
    found = variable.value_from
    return 1 if found is None else sum(look_up(found, (name,)) is not None for name in _SOURCES_OF_ENV)


def _is_unit_of_its_resource(reference: ResourceReference) -> bool:
    units = _UNITS_OF_CPU if reference.resource.endswith(".cpu") else _UNITS
    return reference.divisor is None or str(reference.divisor) in units


def _is_fully_told(context: SecurityContext) -> bool:
    profile = context.seccomp_profile
    return profile is None or (profile.type is ProfileType.LOCALHOST) == (profile.localhost_profile is not None)


def _may_escalate(context: SecurityContext) -> bool:
    return not context.privileged or bool(context.allow_privilege_escalation)


def _is_admitted_root(context: SecurityContext) -> bool:
    return context.run_as_user != 0 or context.run_as_non_root is False


def _tolerates_what(toleration: Toleration) -> bool:
    return bool(toleration.key) or toleration.operator is TolerationOperator.EXISTS


def _has_value_to_compare(toleration: Toleration) -> bool:
    return toleration.operator is not TolerationOperator.EXISTS or not toleration.value


def _is_evicting(toleration: Toleration) -> bool:
    return toleration.toleration_seconds is None or toleration.effect is TaintEffect.NO_EXECUTE


def _has_values_where_compared(requirement: SelectorRequirement) -> bool:
    return (requirement.operator in _WITH_VALUES) == bool(requirement.values)


def _may_have_domains(constraint: TopologySpreadConstraint) -> bool:
    return constraint.min_domains is None or constraint.when_unsatisfiable is Unsatisfiable.DO_NOT_SCHEDULE


def _joins_a_selector(constraint: TopologySpreadConstraint) -> bool:
    return not constraint.match_label_keys or constraint.label_selector is not None


def _joins_what_is_not_selected(constraint: TopologySpreadConstraint) -> bool:
    selector = constraint.label_selector or LabelSelector()
    selected = {*selector.match_labels, *(each.key for each in selector.match_expressions)}
    return selected.isdisjoint(constraint.match_label_keys)


def _repeated_spreads(template: Template) -> list[Entry]:
    """Constraints whose two keys an earlier one has: Kubernetes tells them apart by these."""
    keys = [(each.topology_key, each.when_unsatisfiable) for each in template.topology_spread_constraints]
    return [
        Entry(("topologySpreadConstraints", index), template.topology_spread_constraints[index])
        for index, pair in enumerate(keys)
        if pair in keys[:index]
    ]


_SPREADS = "self.topologySpreadConstraints"
_ONE_SPREAD = f"{_SPREADS}.exists_one(y, y.topologyKey == x.topologyKey && y.whenUnsatisfiable == x.whenUnsatisfiable)"

_METADATA: tuple[Rule[Any], ...] = (
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
        for scope in TEMPLATES
        for kind in ("labels", "annotations")
    ),
    *(
        Rule[str](
            id="label-is-ours",
            scope=(*scope, "labels"),
            each=list,
            at=lambda key: (key,),
            holds=lambda key: key not in OWNED_LABELS,
            message="is set by StreamServe: use another label than {key}",
            values=lambda key: {"key": key},
            cel=(
                Cel(
                    f"!self.exists(key, key in {literal(OWNED_LABELS)})",
                    {"key": "found"},
                    found=f"self.filter(key, key in {literal(OWNED_LABELS)})[0]",
                ),
            ),
        )
        for scope in TEMPLATES
    ),
)

_ENVIRONMENT: tuple[Rule[Any], ...] = (
    *(
        Rule[Entry](
            id="env-not-ours",
            scope=scope,
            each=_owned_env,
            at=lambda entry: entry.at,
            holds=never,
            message="{name} is set by StreamServe: remove it from the template",
            values=lambda entry: {"name": entry.value},
            cel=(Cel(f"!self.matches({whole(OWNED_ENV)})", {"name": "self"}, inner=("env", "[]", "name")),),
        )
        for scope in TEMPLATES
    ),
    *each_once(
        "env-names-unique", "env", "name", "name", "'{name}' is given twice, and the last would count: remove one"
    ),
    *each_item(
        "env-value-or-source",
        ("env", "[]"),
        "valueFrom",
        lambda variable: variable.value == "" or variable.value_from is None,
        "self.value == '' || !has(self.valueFrom)",
        "{name} has a value as well: remove one of the two",
        {"name": "name"},
    ),
    *each_item(
        "env-one-source",
        ("env", "[]"),
        "valueFrom",
        lambda variable: _sources_of(variable) == 1,
        f"!has(self.valueFrom) || {_ONE_SOURCE}",
        f"{{name}} is read from one place: give one of {', '.join(_SOURCES_OF_ENV)}",
        {"name": "name"},
    ),
    *each_item(
        "divisor-of-its-resource",
        ("env", "[]", "valueFrom", "resourceFieldRef"),
        "divisor",
        _is_unit_of_its_resource,
        "!has(self.divisor) || string(self.divisor) in "
        f"(self.resource.endsWith('.cpu') ? {literal(_UNITS_OF_CPU)} : {literal(_UNITS)})",
        "is no unit of {resource}: use 1 or 1m for cpu, else 1, or 1 and k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi or Ei",
        {"resource": "resource"},
    ),
)

_SCHEDULING: tuple[Rule[Any], ...] = (
    *each_item(
        "toleration-has-a-key",
        ("tolerations", "[]"),
        "key",
        _tolerates_what,
        "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
        "is missing: name a taint, or set operator Exists to accept every one",
    ),
    *each_item(
        "toleration-value-is-compared",
        ("tolerations", "[]"),
        "value",
        _has_value_to_compare,
        "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        "is not looked at with operator Exists: remove it",
    ),
    *each_item(
        "toleration-seconds-of-an-eviction",
        ("tolerations", "[]"),
        "tolerationSeconds",
        _is_evicting,
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "counts for effect NoExecute alone: set that effect, or remove it",
    ),
    *(
        Rule[Entry](
            id="spreads-unique",
            scope=scope,
            each=_repeated_spreads,
            at=lambda entry: entry.at,
            holds=never,
            message="{topology} with {unsatisfiable} is listed twice: merge the two",
            values=lambda entry: {
                "topology": entry.value.topology_key,
                "unsatisfiable": entry.value.when_unsatisfiable.value,
            },
            cel=(
                Cel(
                    f"{_SPREADS}.all(x, {_ONE_SPREAD})",
                    {"topology": "found.topologyKey", "unsatisfiable": "found.whenUnsatisfiable"},
                    found=f"{_SPREADS}.filter(x, !{_ONE_SPREAD})[0]",
                    at=("topologySpreadConstraints",),
                ),
            ),
        )
        for scope in TEMPLATES
    ),
    *each_item(
        "spread-domains-where-pods-wait",
        ("topologySpreadConstraints", "[]"),
        "minDomains",
        _may_have_domains,
        "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
        "counts for whenUnsatisfiable DoNotSchedule alone: set that, or remove it",
    ),
    *each_item(
        "spread-labels-join-a-selector",
        ("topologySpreadConstraints", "[]"),
        "matchLabelKeys",
        _joins_a_selector,
        "self.matchLabelKeys.size() == 0 || has(self.labelSelector)",
        "join a labelSelector and there is none: add one, or remove them",
    ),
    *each_item(
        "spread-labels-selected-once",
        ("topologySpreadConstraints", "[]"),
        "matchLabelKeys",
        _joins_what_is_not_selected,
        "!has(self.labelSelector) || self.matchLabelKeys.all(key, !(key in self.labelSelector.matchLabels) && "
        "!self.labelSelector.matchExpressions.exists(x, x.key == key))",
        "name a label that labelSelector asks for as well: remove it from one of the two",
    ),
    *each_item(
        "selector-values-where-compared",
        ("topologySpreadConstraints", "[]", "labelSelector", "matchExpressions", "[]"),
        "values",
        _has_values_where_compared,
        f"(self.operator in {literal(_WITH_VALUES)}) == (self.values.size() > 0)",
        "belong to In and NotIn, which need some, and to no other operator: add or remove them",
    ),
)

_SECURITY: tuple[Rule[Any], ...] = tuple(
    rule
    for scope in TEMPLATES
    for rule in (
        Rule[SecurityContext](
            id="privileged-may-escalate",
            scope=(*scope, "securityContext"),
            at=here("privileged"),
            holds=_may_escalate,
            message="cannot be without more privileges, which we refuse by default: set allowPrivilegeEscalation too",
            cel=(
                Cel(
                    "!has(self.privileged) || !self.privileged || "
                    "(has(self.allowPrivilegeEscalation) && self.allowPrivilegeEscalation)",
                    at=("privileged",),
                ),
            ),
        ),
        Rule[SecurityContext](
            id="root-is-asked-for",
            scope=(*scope, "securityContext"),
            at=here("runAsUser"),
            holds=_is_admitted_root,
            message="0 is root, whom our pods refuse to run as: set runAsNonRoot to false too, or use another user",
            cel=(
                Cel(
                    "!has(self.runAsUser) || self.runAsUser != 0 || (has(self.runAsNonRoot) && !self.runAsNonRoot)",
                    at=("runAsUser",),
                ),
            ),
        ),
        Rule[SecurityContext](
            id="localhost-profile-with-its-type",
            scope=(*scope, "securityContext"),
            at=here("seccompProfile", "localhostProfile"),
            holds=_is_fully_told,
            message="is the file of type Localhost, and of no other: add or remove it",
            cel=(
                Cel(
                    "!has(self.seccompProfile) || "
                    "(self.seccompProfile.type == 'Localhost') == has(self.seccompProfile.localhostProfile)",
                    at=("seccompProfile", "localhostProfile"),
                ),
            ),
        ),
    )
)

_PULLING = each_once("pull-secrets-unique", "imagePullSecrets", "name", "name", "'{name}' is listed twice: remove one")

RULES: tuple[Rule[Any], ...] = (*_METADATA, *_ENVIRONMENT, *_SCHEDULING, *_SECURITY, *_PULLING)
