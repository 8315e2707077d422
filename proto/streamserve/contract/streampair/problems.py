"""What is wrong with a StreamPair, where, and what to do about it: one shape for YAML, types, bounds and rules.

Messages finish the sentence that the path begins (`spec.lanes: must be at least 0, is -1`), so that a terminal, an
editor (`FILE:LINE:COL: …`) and a Kubernetes condition can show them alike.
"""

from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from streamserve.contract.streampair.fields import PATTERN_MEANINGS, Path
from streamserve.contract.streampair.flags import nearest


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `suggestion` is what the reader most likely meant; `rule` the id of the rule that is broken."""

    path: str
    line: int
    column: int
    message: str
    suggestion: str = ""
    rule: str = ""

    def format(self, file: str = "") -> str:
        """`FILE:LINE:COL: path: message (did you mean …?)`"""
        place = f"{file}:{self.line}:{self.column}: " if file else ""
        path = f"{self.path}: " if self.path else ""
        hint = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        return f"{place}{path}{self.message}{hint}"


_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def explain(error: ErrorDetails) -> tuple[str, str]:
    """A pydantic error as (message, suggestion), in words that say what to write. `extra_forbidden` is the loader's."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, is {describe(value)}", _retyped(kind, value)
    match kind:
        case "missing":
            return "is required: add it", ""
        case "enum" | "literal_error":
            return _choice(str(context.get("expected", "")), value)
        case "greater_than_equal":
            return f"must be at least {context['ge']}, is {describe(value)}", ""
        case "less_than_equal":
            return f"must be at most {context['le']}, is {describe(value)}", ""
        case "string_too_short":
            return "must not be empty: give it a value or remove the line", ""
        case "string_too_long":
            return f"must have at most {context['max_length']} characters, has {len(str(value))}", ""
        case "too_long":
            return f"must have at most {context['max_length']} entries: remove some", ""
        case "string_pattern_mismatch":
            meaning = PATTERN_MEANINGS.get(str(context.get("pattern")), f"text like {context.get('pattern')}")
            return f"{describe(value)} must be {meaning}", ""
        case "value_error":
            told = "" if isinstance(value, dict) else f", is {describe(value)}"
            return f"{context.get('error', error['msg'])}{told}", ""
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, is {describe(value)}", ""


def describe(value: Any) -> str:
    """A value in a message: short, and unambiguous about its type."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}" if len(str(value)) <= 40 else "a very large number"
        case str():
            return '"' + (value if len(value) <= 60 else value[:57] + "…") + '"'
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return "something else"


def clean_path(location: tuple[int | str, ...]) -> Path:
    """Pydantic's location without its own markers."""
    return tuple(part for part in location if part != "[key]")


def _retyped(kind: str, value: Any) -> str:
    """The same value written as the wanted type, where there is one."""
    if kind == "string_type" and isinstance(value, bool):
        return f'"{str(value).lower()}"'
    if kind == "string_type" and isinstance(value, int | float) and len(str(value)) <= 40:
        return f'"{value}"'
    if kind == "int_type" and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return value.lstrip("0") or "0"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if kind == "bool_type" and isinstance(value, str):
        return {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}.get(
            value.lower(), ""
        )
    if kind in ("tuple_type", "list_type") and isinstance(value, str) and len(value) <= 60:
        return f"[{value}]"
    return ""


def _choice(expected: str, value: Any) -> tuple[str, str]:
    choices = [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]
    guess = nearest(value, choices) if isinstance(value, str) else ""
    if value is False and "Off" in choices:
        guess = '"Off"'
    return f"must be one of {', '.join(choices)}, is {describe(value)}", guess
