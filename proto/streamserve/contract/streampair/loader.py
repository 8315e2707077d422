"""YAML text → a StreamPair, or everything that is wrong with it, each with its line and column.

Three passes over one document: the YAML itself (`nodes.py`), fields, types and bounds (pydantic), rules between
fields and what is not in this release (`rules.py`, `releases.py`). Where a field is wrong the rules that look at its
part of the spec are left out, for they would judge a value that nobody wrote; the others are still reported.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from streamserve.contract.streampair import releases, rules
from streamserve.contract.streampair.fields import Path, render
from streamserve.contract.streampair.flags import nearest
from streamserve.contract.streampair.nodes import Document, parse
from streamserve.contract.streampair.problems import Problem, clean_path, describe, explain
from streamserve.contract.streampair.resource import API_VERSION, KIND, StreamPair
from streamserve.contract.streampair.rule import Finding
from streamserve.contract.streampair.schema import aliases, first_paths, model_at

MAX_PROBLEMS = 100
_REPAIRS = 4
_STAND_INS: dict[Path, str] = {("metadata", "name"): "unnamed", ("spec", "model", "name"): "unnamed"}
"""Required fields that are wrong or missing get these, so that the rules about the rest can still be checked."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a text holds: a pair that keeps every rule, or at least one problem. `document` knows the lines."""

    pair: StreamPair | None
    problems: tuple[Problem, ...]
    document: Document


def load(text: str | bytes) -> StreamPair | list[Problem]:
    """The StreamPair in this text, or its problems in the order of the file. Never raises."""
    loaded = read(text)
    return loaded.pair if loaded.pair is not None else list(loaded.problems)


def read(text: str | bytes) -> Loaded:
    """As `load`, and where each field stands, for whoever finds problems later (a missing folder, say)."""
    document = parse(text)
    problems = [*document.problems, *_identity_problems(document)]
    if problems and not _is_ours(document.data):
        return Loaded(None, _in_order(problems), document)
    wrong, pair = _validate(document.data)
    problems += [_problem_of(error, document) for error in wrong]
    if pair is not None:
        touched = [clean_path(error["loc"]) for error in wrong]
        problems += [_place(finding, document) for finding in _findings(pair, touched)]
    if problems or pair is None:
        return Loaded(None, _in_order(problems), document)
    return Loaded(pair, (), document)


def _is_ours(data: Any) -> bool:
    return isinstance(data, dict) and data.get("kind") == KIND and data.get("apiVersion") == API_VERSION


def _identity_problems(document: Document) -> list[Problem]:
    if document.data is None and document.problems:
        return []
    if not isinstance(document.data, dict):
        line, column = document.where(())
        return [
            Problem("", line, column, f"the document is {describe(document.data)}: a StreamPair is a mapping of fields")
        ]
    found = []
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if name not in document.data:
            found.append(Problem(name, 1, 1, f"is required: add {name}: {wanted}"))
        elif document.data[name] != wanted:
            line, column = document.where((name,))
            found.append(Problem(name, line, column, f"must be {wanted}, is {describe(document.data[name])}", wanted))
    return found


def _validate(data: Any) -> tuple[list[Any], StreamPair | None]:
    """Errors of fields, and the pair that remains when the wrong ones are left out, if one does."""
    try:
        return [], StreamPair.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        errors: list[Any] = error.errors(include_url=False)
    remains, current = copy.deepcopy(data), errors
    for _ in range(_REPAIRS):
        removed = [_remove(remains, clean_path(each["loc"])) for each in current]
        if not all(removed):
            return errors, None
        try:
            return errors, StreamPair.model_validate(remains, by_alias=True, by_name=False)
        except ValidationError as error:
            current = error.errors(include_url=False)
    return errors, None


def _remove(data: Any, path: Path) -> bool:
    """Take the field at this path out; a wrong item takes its list with it. False where there is nothing."""
    if path in _STAND_INS:
        parent = data.get("metadata") if path[0] == "metadata" else data["spec"].get("model")
        if not isinstance(parent, dict):
            return False
        parent[path[-1]] = _STAND_INS[path]
        return True
    end = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
    *parents, last = path[:end] or ("",)
    for part in parents:
        if not isinstance(data, dict) or part not in data:
            return True
        data = data[part]
    if not isinstance(data, dict):
        return False
    return data.pop(last, _ABSENT) is not _ABSENT or end < len(path)


_ABSENT = object()


def _findings(pair: StreamPair, touched: list[Path]) -> Iterable[Finding]:
    unbuilt = [
        finding for rule in releases.UNBUILT if not _touches(rule.scope, touched) for finding in rule.findings(pair)
    ]
    broken = [finding for rule in rules.RULES if not _touches(rule.scope, touched) for finding in rule.findings(pair)]
    known = {finding.path for finding in unbuilt}
    return unbuilt + [finding for finding in broken if finding.path not in known]


def _touches(scope: Path, touched: list[Path]) -> bool:
    return any(path[: len(scope)] == scope or scope[: len(path)] == path for path in touched)


def _place(finding: Finding, document: Document) -> Problem:
    line, column = document.where(finding.path)
    return Problem(render(finding.path), line, column, finding.message, rule=finding.rule)


def _problem_of(error: Any, document: Document) -> Problem:
    path = clean_path(error["loc"])
    about_key = error["type"] in ("extra_forbidden", "missing") or "[key]" in error["loc"]
    line, column = document.where(path, key=about_key)
    if error["type"] == "extra_forbidden":
        return Problem(render(path), line, column, "unknown field", _known_field(path))
    message, suggestion = explain(error)
    return Problem(render(path), line, column, message, suggestion)


def _known_field(path: Path) -> str:
    """The field that was meant: the nearest name beside it, else the same name elsewhere in the resource."""
    name, parent = str(path[-1]), model_at(StreamPair, path[:-1])
    sibling = nearest(name, aliases(parent)) if parent is not None else ""
    if sibling:
        return render((*path[:-1], sibling))
    everywhere = first_paths()
    return everywhere.get(nearest(name, list(everywhere)), "")


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column, problem.path))
    if len(ordered) > MAX_PROBLEMS:
        last = ordered[MAX_PROBLEMS - 1]
        more = Problem("", last.line, last.column, f"{len(ordered) - MAX_PROBLEMS + 1} more problems: mend these first")
        return (*ordered[: MAX_PROBLEMS - 1], more)
    return tuple(ordered)
