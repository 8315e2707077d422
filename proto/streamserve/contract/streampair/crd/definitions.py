"""The two CRDs: names, columns of `kubectl get`, subresources, and the schema with its rules.

`/scale` of a StreamPair is its lanes, of a StreamPairScaler one role's replicas. `labelSelectorPath` is what an
autoscaler needs to find the pods. There is one version, stored and served.
"""

from typing import Any

from streamserve.contract.streampair.crd.structural import Schema, structural
from streamserve.contract.streampair.crd.validations import (
    Placed,
    every_rule,
    place,
    placed,
    rules_of_fixed_fields,
    rules_of_keys,
)
from streamserve.contract.streampair.fields import DNS_LABEL_PATTERN, SpecModel
from streamserve.contract.streampair.resource import (
    API_VERSION,
    StreamPair,
    StreamPairSpec,
    StreamPairStatus,
)
from streamserve.contract.streampair.scaler import (
    NAME_MESSAGE,
    NAME_RULE,
    StreamPairScaler,
    StreamPairScalerSpec,
    StreamPairScalerStatus,
)
from streamserve.contract.streampair.schema import settings_of

GROUP, VERSION = API_VERSION.split("/")

Column = tuple[str, str, str, str, int]
"""Name, type, path, description, priority (1: only with `-o wide`)."""

_PAIR_COLUMNS: tuple[Column, ...] = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "every wanted lane takes requests", 0),
    ("Lanes", "integer", ".spec.lanes", "lanes that are wanted", 0),
    ("Prefill", "string", ".status.roles.prefill.summary", "prefill pods, ready/total", 0),
    ("Decode", "string", ".status.roles.decode.summary", "decode pods, ready/total", 0),
    ("Config", "string", '.status.conditions[?(@.type=="ConfigApplied")].status', "the last edit is in force", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "why it is ready or not", 1),
    ("Model", "string", ".spec.model.name", "what is served", 1),
    ("Method", "string", ".spec.speculation.method", "how draft tokens are made", 1),
    ("Address", "string", ".status.address", "where clients connect", 1),
    ("Age", "date", ".metadata.creationTimestamp", "time since it was created", 0),
)
_SCALER_COLUMNS: tuple[Column, ...] = (
    ("Pair", "string", ".spec.pairName", "StreamPair whose role is scaled", 0),
    ("Role", "string", ".spec.role", "the role", 0),
    ("Wanted", "integer", ".spec.replicas", "pods of the role in each lane that are wanted", 0),
    ("Current", "integer", ".status.replicas", "pods of the role that each lane has", 0),
    ("Age", "date", ".metadata.creationTimestamp", "time since it was created", 0),
)


def definitions() -> dict[str, dict[str, Any]]:
    """Both CRDs by their plural names."""
    pair, pair_rules = _streampair()
    scaler, scaler_rules = _streampairscaler()
    place(pair, pair_rules)
    place(scaler, scaler_rules)
    return {
        "streampairs": _definition("StreamPair", "sp", pair, _PAIR_COLUMNS, ".spec.lanes", ".status.lanes"),
        "streampairscalers": _definition(
            "StreamPairScaler", "sps", scaler, _SCALER_COLUMNS, ".spec.replicas", ".status.replicas"
        ),
    }


def placed_rules() -> dict[str, list[Placed]]:
    """Every rule of both CRDs, with the node that carries it."""
    return {"streampairs": _streampair()[1], "streampairscalers": _streampairscaler()[1]}


def _streampair() -> tuple[Schema, list[Placed]]:
    schema = _schema(StreamPair, StreamPairSpec, StreamPairStatus)
    fixed = rules_of_fixed_fields(settings_of(StreamPairSpec), schema, "StreamPair")
    return schema, [*every_rule(), *rules_of_keys(schema), *fixed]


def _streampairscaler() -> tuple[Schema, list[Placed]]:
    schema = _schema(StreamPairScaler, StreamPairScalerSpec, StreamPairScalerStatus)
    fixed = rules_of_fixed_fields(settings_of(StreamPairScalerSpec), schema, "StreamPairScaler")
    return schema, [placed("scaler-name", (), NAME_MESSAGE, NAME_RULE), *fixed]


def _schema(resource: type[SpecModel], spec: type[SpecModel], status: type[SpecModel]) -> Schema:
    """The root. Of metadata only the name may be bounded here; the API server knows the rest."""
    told = resource.model_fields
    return {
        "description": (resource.__doc__ or "").strip(),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"schema of this object: {API_VERSION}"},
            "kind": {"type": "string", "description": f"kind of this object: {resource.__name__}"},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 63, "pattern": DNS_LABEL_PATTERN}},
            },
            "spec": {**structural(spec), "description": told["spec"].description},
            "status": {**structural(status, with_defaults=False), "description": told["status"].description},
        },
    }


def _definition(
    kind: str, short: str, schema: Schema, columns: tuple[Column, ...], wanted: str, current: str
) -> dict[str, Any]:
    plural = kind.lower() + "s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["streamserve"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": wanted,
                            "statusReplicasPath": current,
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [_column(*column) for column in columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": priority} if priority else column
