"""What every field of a StreamPair is made of: when a change takes effect, bounded types, one base model.

A field carries its lifecycle as metadata, next to its bounds and its reason:

    max_depth: Annotated[Int, Cold(), Field(ge=1, le=16, description="buffers are built for it")] = 6

`changes.py` reads the lifecycle, `schema.py` lists all of it. YAML says `maxDepth`, Python says `max_depth`:
the loader takes the YAML name only, builders in tests and in the operator may use the Python name.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

Path = tuple[str | int, ...]


class Lifecycle(StrEnum):
    """When a changed value takes effect."""

    HOT = "hot"
    COLD = "cold"
    SCALE = "scale"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Applies:
    """Base of the four markers; find it in a field's metadata with `isinstance`."""

    kind: ClassVar[Lifecycle]


@dataclass(frozen=True, slots=True)
class Hot(Applies):
    """Applied to running workers and routers."""

    kind: ClassVar[Lifecycle] = Lifecycle.HOT


@dataclass(frozen=True, slots=True)
class Cold(Applies):
    """Replaces lanes in lockstep, drain first."""

    kind: ClassVar[Lifecycle] = Lifecycle.COLD


@dataclass(frozen=True, slots=True)
class Scale(Applies):
    """Adds or removes pods (processes in local mode)."""

    kind: ClassVar[Lifecycle] = Lifecycle.SCALE


@dataclass(frozen=True, slots=True)
class Fixed(Applies):
    """Immutable: another value is another StreamPair."""

    kind: ClassVar[Lifecycle] = Lifecycle.FIXED


class SpecModel(BaseModel):
    """Frozen, camelCase outside, and nothing that it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )


# Without \s, \d and \w: those of pydantic know all of Unicode, those of the API server ASCII alone.
_DNS_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME = rf"{_DNS_PART}(\.{_DNS_PART})*"
_SHORT_NAME = r"[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?"

DNS_LABEL_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
RFC1123_LABEL_PATTERN = rf"^{_DNS_PART}$"
SUBDOMAIN_PATTERN = rf"^{_DNS_NAME}$"
LABEL_KEY_PATTERN = rf"^({_DNS_NAME}/)?{_SHORT_NAME}$"
LABEL_VALUE_PATTERN = rf"^({_SHORT_NAME})?$"
ANNOTATION_KEY_PATTERN = rf"^({_DNS_NAME.replace('a-z', 'A-Za-z')}/)?{_SHORT_NAME}$"
RESOURCE_NAME_PATTERN = rf"^(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i|{_DNS_NAME}/{_SHORT_NAME})$"
WORD_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"
MODEL_PATTERN = r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$"
SERVED_NAME_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9._:/]*[A-Za-z0-9])?$"
CONFIG_KEY_PATTERN = r"^[.]?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"
FLAG_PATTERN = r"^[a-zA-Z][a-zA-Z0-9_-]*([.][a-zA-Z0-9._-]*[+]?)?$"
ABSOLUTE_PATH_PATTERN = r"^/[^\x00-\x1f\x7f]*$"
IMAGE_PATTERN = r"^[!-~]*$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

# What to tell the reader in place of a regular expression.
PATTERN_MEANINGS: dict[str, str] = {
    DNS_LABEL_PATTERN: "lower-case letters, digits and '-', beginning with a letter and not ending with '-'",
    RFC1123_LABEL_PATTERN: "lower-case letters, digits and '-', beginning and ending with a letter or digit",
    SUBDOMAIN_PATTERN: (
        "lower-case letters, digits, '-' and '.', each part between dots beginning and ending with a letter or digit"
    ),
    LABEL_KEY_PATTERN: (
        "a label's key: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit; "
        "a DNS name in lower case and '/' may come first"
    ),
    LABEL_VALUE_PATTERN: (
        "a label's value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    ),
    ANNOTATION_KEY_PATTERN: (
        "an annotation's key: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or "
        "digit; a DNS name and '/' may come first"
    ),
    RESOURCE_NAME_PATTERN: "cpu, memory, ephemeral-storage, hugepages-2Mi, or a device such as nvidia.com/gpu",
    WORD_PATTERN: "letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    MODEL_PATTERN: "a hub id or a path, without control characters and without blanks at either end",
    SERVED_NAME_PATTERN: "letters, digits and any of '-._:/', beginning and ending with a letter or digit",
    CONFIG_KEY_PATTERN: "letters, digits, '-', '_' and '.', and neither '.' alone nor '..' at its beginning",
    FLAG_PATTERN: "a vLLM flag without its leading dashes, such as max-model-len",
    ABSOLUTE_PATH_PATTERN: "an absolute path, beginning with '/'",
    IMAGE_PATTERN: "an image's name, without blanks",
    QUANTITY_PATTERN: "a Kubernetes quantity such as 1, 500m or 16Gi",
}


MAX_QUANTITY_LENGTH = 32


def _quantity(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a quantity such as 1, 500m or 16Gi")
    text = str(value)
    if len(text) > MAX_QUANTITY_LENGTH or re.fullmatch(QUANTITY_PATTERN, text) is None:
        raise ValueError("must be a quantity such as 1, 500m or 16Gi")
    return value


MAX_JSON_DEPTH = 16


def plain_json(value: Any) -> Any:
    _check_json(value, MAX_JSON_DEPTH)
    return value


def _check_json(value: object, left: int) -> None:
    if left == 0:
        raise ValueError(f"is nested more than {MAX_JSON_DEPTH} deep: flatten it")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("contains a number that JSON does not have: write a finite one")
    if isinstance(value, dict):
        for item in value.values():
            _check_json(item, left - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, left - 1)


Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL_PATTERN)]
Subdomain = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SUBDOMAIN_PATTERN)]
OptionalSubdomain = Annotated[str, StringConstraints(max_length=253, pattern=r"^$|" + SUBDOMAIN_PATTERN)]
OptionalDnsLabel = Annotated[str, StringConstraints(max_length=63, pattern=r"^$|" + DNS_LABEL_PATTERN)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=MODEL_PATTERN)]
ServedName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=SERVED_NAME_PATTERN)]
WorkloadName = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=WORD_PATTERN)]
TenantName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=WORD_PATTERN)]
SecretKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=CONFIG_KEY_PATTERN)]
AbsolutePath = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=ABSOLUTE_PATH_PATTERN)]
ShortText = Annotated[str, StringConstraints(max_length=512)]
Image = Annotated[str, StringConstraints(max_length=512, pattern=IMAGE_PATTERN)]
FlagName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=FLAG_PATTERN)]
FlagValue = Annotated[str, StringConstraints(max_length=4096)]
MapKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
MapValue = Annotated[str, StringConstraints(max_length=4096)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)]
OptionalLabelKey = Annotated[str, StringConstraints(max_length=317, pattern=r"^$|" + LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)]
AnnotationKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=ANNOTATION_KEY_PATTERN)]
ResourceName = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=RESOURCE_NAME_PATTERN)]
Namespace = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=RFC1123_LABEL_PATTERN)]
VolumeName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=RFC1123_LABEL_PATTERN)]
Quantity = Annotated[
    int | str,
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "maxLength": MAX_QUANTITY_LENGTH,
            "minimum": 0,
        }
    ),
]
JsonObject = Annotated[dict[MapKey, Any], Field(max_length=64), AfterValidator(plain_json)]
"""A part of the Kubernetes API that we hand through: its own schema is checked by the API server."""

PATTERN_MEANINGS |= {
    r"^$|" + pattern: PATTERN_MEANINGS[pattern] for pattern in (SUBDOMAIN_PATTERN, DNS_LABEL_PATTERN, LABEL_KEY_PATTERN)
}


def render(path: Path) -> str:
    """`("spec", "slo", "workloads", 0, "name")` → `spec.slo.workloads[0].name`; keys with dots are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            text += '["' + part.replace("\\", "\\\\").replace('"', '\\"') + '"]'
    return text
