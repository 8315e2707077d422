"""The settings as a list: every field with its lifecycle, type, bounds, default and reason, read off the models.

One walk serves the settings table, the suggestions of the loader and the CRD.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Union, get_args, get_origin

import annotated_types
from pydantic import StringConstraints, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from streamserve.contract.streampair.fields import (
    PATTERN_MEANINGS,
    Applies,
    Lifecycle,
    Path,
    SpecModel,
)
from streamserve.contract.streampair.resource import Metadata, StreamPairSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of the spec. `path` ends its lists with `[]`: `spec.slo.workloads[].name`."""

    path: str
    lifecycle: Lifecycle
    type: str
    bounds: str
    default: str
    why: str


def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the resource: the two names first, then the spec."""
    names = (_setting("metadata." + name, Metadata.model_fields[name], None) for name in ("name", "namespace"))
    return (*names, *settings_of(StreamPairSpec))


def settings_of(spec: type[SpecModel]) -> Iterator[Setting]:
    """Every setting of a kind's spec, with paths from the resource's root."""
    return _walk(spec, "spec", None)


def lifecycle_of(field: FieldInfo) -> Lifecycle | None:
    """The field's own marker; None: its parent's holds."""
    return next((mark.kind for mark in field.metadata if isinstance(mark, Applies)), None)


def model_at(root: type[SpecModel], path: Path) -> type[SpecModel] | None:
    """The model whose fields may stand at this path (list positions are skipped), if it is one of ours."""
    model: type[SpecModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        field = next((f for f in model.model_fields.values() if f.alias == part), None) if model else None
        model = None if field is None else _model_in(field.annotation)[0]
    return model


def aliases(model: type[SpecModel]) -> list[str]:
    """The YAML names of a model's fields."""
    return [field.alias or name for name, field in model.model_fields.items()]


def first_paths() -> dict[str, str]:
    """Each field name, and the first place that has it: where a misplaced field most likely belongs."""
    found: dict[str, str] = {}
    for setting in settings():
        parts = setting.path.split(".")
        for end in range(1, len(parts) + 1):
            found.setdefault(parts[end - 1].removesuffix("[]"), ".".join(parts[:end]).removesuffix("[]"))
    return found


def _walk(model: type[SpecModel], prefix: str, inherited: Lifecycle | None) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{field.alias or name}"
        own = lifecycle_of(field) or inherited
        inner, is_list = _model_in(field.annotation)
        if inner is None or is_list or _is_optional(field.annotation):
            yield _setting(path, field, own)
        if inner is not None:
            yield from _walk(inner, path + "[]" if is_list else path, own)


def _setting(path: str, field: FieldInfo, inherited: Lifecycle | None) -> Setting:
    lifecycle = lifecycle_of(field) or inherited
    if lifecycle is None:
        raise TypeError(f"{path} has no lifecycle: mark it Hot(), Cold(), Scale() or Fixed()")
    return Setting(
        path, lifecycle, _type_name(field.annotation), _bounds(field), _default(field), field.description or ""
    )


def _is_optional(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _model_in(annotation: Any) -> tuple[type[SpecModel] | None, bool]:
    """The model inside `Model`, `Model | None` or `tuple[Model, ...]`, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return annotation, False
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, tuple):
        for argument in get_args(annotation):
            model, _ = _model_in(argument)
            if model is not None:
                return model, origin is tuple
    return None, False


def _type_name(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "object" if arguments[1] is Any else f"map of {_type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "enum"
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return "object"
    return {int: "integer", bool: "boolean", str: "text"}.get(annotation, "text")


def _bounds(field: FieldInfo) -> str:
    enum = _present(field.annotation)
    if isinstance(enum, type) and issubclass(enum, StrEnum):
        return ", ".join(enum)
    low: Any = None
    high: Any = None
    parts: list[str] = []
    unit = {dict: "entries", tuple: "items"}.get(get_origin(field.annotation) or str, "characters")
    for constraint in (*_constraints(field.metadata), *_inner_constraints(field.annotation)):
        match constraint:
            case annotated_types.Ge(ge=value):
                low = value
            case annotated_types.Le(le=value):
                high = value
            case annotated_types.MaxLen(max_length=value) if value:
                parts.append(f"≤ {value} {unit}")
            case WithJsonSchema(json_schema={"maxLength": length, "pattern": pattern}):
                parts += [f"≤ {length} {unit}", PATTERN_MEANINGS[pattern]]
            case StringConstraints(max_length=length, pattern=pattern):
                parts.append(f"≤ {length} {unit}")
                if isinstance(pattern, str):
                    parts.append(PATTERN_MEANINGS[pattern])
    if low is not None and high is not None:
        parts.insert(0, f"{low}..{high}")
    return "; ".join(parts)


def _present(annotation: Any) -> Any:
    """The type of an optional field when it is given."""
    inner = [part for part in get_args(annotation) if part is not type(None)]
    return inner[0] if _is_optional(annotation) and len(inner) == 1 else annotation


def _inner_constraints(annotation: Any) -> Iterator[Any]:
    """Of `Annotated[X, …] | None`: there they stand beside X and not on the field."""
    inner = _present(annotation)
    if inner is not annotation and hasattr(inner, "__metadata__"):
        yield from _constraints(list(inner.__metadata__))


def _constraints(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[]"
    if isinstance(value, dict):
        return "{}"
    return str(value) if str(value) else '""'
