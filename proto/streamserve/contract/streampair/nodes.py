"""YAML text → plain values and the place of each, with every oddity of YAML turned into a problem.

The node graph is walked here rather than by a YAML constructor, because we want the line and column of every key, the
second of two equal keys, a bound on what aliases expand to, and no other exception whatever the input is. Scalars are
read as YAML 1.2 does; a number or a key that kubectl, which reads YAML 1.1, takes for another is refused. The size
limit is that of the annotation in which kubectl keeps what it applied: a larger StreamPair could not be applied either.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from streamserve.contract.streampair.fields import Path, render
from streamserve.contract.streampair.problems import Problem

MAX_BYTES = 262_144
MAX_NODES = 20_000
MAX_DEPTH = 48

_TAG = "tag:yaml.org,2002:"
_BARE_BOOLEANS = re.compile(r"y|yes|on|n|no|off", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]*[0-9]")
_NUMBER_TO_KUBECTL = re.compile(
    r"[-+]?(0B[01_]+|0O[0-7_]+|0X[0-9a-fA-F_]+|([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9_]+)"
)
"""Of what YAML 1.2 takes for text."""
_BASES = {"0b": 2, "0o": 8, "0x": 16}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key and its value begin, counted from 1."""

    key: tuple[int, int]
    value: tuple[int, int]


@dataclass(slots=True)
class Document:
    """A parsed file: its values, where they stand, and what was wrong with the YAML itself."""

    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    bare_words: list[Path] = field(default_factory=list)
    """Unquoted `Off`, `no` and the like: text here, a boolean to kubectl, which reads YAML 1.1."""

    def where(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Line and column of a path, or of its nearest ancestor that is in the file."""
        for end in range(len(path), -1, -1):
            place = self.places.get(path[:end])
            if place is not None:
                return place.key if key or end < len(path) else place.value
        return (1, 1)


def parse(text: str | bytes) -> Document:
    """The one document in this text. Never raises: whatever is wrong is in `problems`, and then `data` is partial."""
    document = Document()
    source = _decode(text, document)
    if source is None:
        return document
    root = _compose(source, document)
    if root is not None:
        document.data = _Walk(document).value(root, (), 0)
    return document


def _decode(text: str | bytes, document: Document) -> str | None:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        document.problems.append(
            Problem("", 1, 1, f"the file has {size} bytes: a StreamPair has at most {MAX_BYTES}; is it the right file?")
        )
        return None
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - (text.rfind(b"\n", 0, error.start) + 1) + 1
        document.problems.append(Problem("", line, column, "is not UTF-8 text: save the file as UTF-8"))
        return None


def _compose(source: str, document: Document) -> Node | None:
    root: Node | None = None
    try:
        for node in YAML(typ="safe", pure=True).compose_all(source):
            if _is_empty(node):
                continue
            if root is not None:
                line, column = _place(node)
                document.problems.append(
                    Problem("", line, column, "a second document begins here: keep one StreamPair a file")
                )
                return None
            root = node
    except MarkedYAMLError as error:
        document.problems.append(_syntax_problem(error))
    except ReaderError as error:
        line = source.count("\n", 0, error.position) + 1
        column = error.position - (source.rfind("\n", 0, error.position) + 1) + 1
        document.problems.append(Problem("", line, column, "is a character that YAML forbids: remove it"))
    except RecursionError:
        document.problems.append(Problem("", 1, 1, "the document is nested too deeply: flatten it"))
    except Exception as error:
        # ruamel's scanner fails with assertions and index errors on some malformed input.
        document.problems.append(Problem("", 1, 1, f"is no YAML that can be read ({type(error).__name__}): rewrite it"))
    else:
        if root is not None:
            return root
        document.problems.append(
            Problem("", 1, 1, "the file is empty: begin with apiVersion: streamserve.io/v1alpha1 and kind: StreamPair")
        )
    return None


def _syntax_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    text = " ".join(str(error.problem or error.context or "malformed").split())
    if "found undefined alias" in text or "undefined alias" in str(error.context or ""):
        return Problem("", line, column, "an alias (*name) has no anchor (&name): define it first")
    return Problem("", line, column, f"malformed YAML: {text}")


class _Walk:
    """One pass over the node graph, counting what aliases expand to."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0
        self.open: set[int] = set()

    def value(self, node: Node, path: Path, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH or id(node) in self.open:
            self._refuse_size(node, path, depth)
            return None
        self.document.places.setdefault(path, Place(_place(node), _place(node)))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path, depth)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))
        self._problem(node, path, f"has the tag {_shown(str(node.tag))}: remove it, plain YAML is wanted")
        return None

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, int] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged.append(value_node)
                continue
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None or _is_no_text_to_someone(key_node) or not _is_clean(key):
                self._problem(key_node, path, "has a key that is no plain text: write the key in quotes")
                continue
            inner = (*path, key)
            if key in seen:
                self._problem(key_node, inner, f"is given twice, first on line {seen[key]}: remove one")
                continue
            seen[key] = key_node.start_mark.line + 1
            # The first place stays: a mapping's own keys are read before what is merged into it, over which they win.
            self.document.places.setdefault(
                inner, Place(_place(key_node), _place(key_node if _is_nothing(value_node) else value_node))
            )
            result[key] = self.value(value_node, inner, depth + 1)
        for source in merged:
            for key, value in self._merge_source(source, path, depth):
                result.setdefault(key, value)
        return result

    def _merge_source(self, node: Node, path: Path, depth: int) -> Iterator[tuple[str, Any]]:
        parts = node.value if isinstance(node, SequenceNode) else [node]
        for part in parts:
            value = self.value(part, path, depth + 1)
            if isinstance(value, dict):
                yield from value.items()
            else:
                self._problem(part, path, "merges (<<) something that is no mapping: point it at one")

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text, kind = node.value, str(node.tag).removeprefix(_TAG)
        if kind in ("str", "timestamp", "value"):
            if not _is_clean(text):
                self._problem(node, path, "contains a character that is no Unicode text: remove it")
                return None
            if node.style is None and _NUMBER_TO_KUBECTL.fullmatch(text):
                self._problem(node, path, f"{_shown(text)} is a number to kubectl: write it in quotes, or in decimal")
            if node.style is None and _BARE_BOOLEANS.fullmatch(text):
                self.document.bare_words.append(path)
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind not in ("int", "float", "bool"):
            self._problem(node, path, f"has the tag {_shown(str(node.tag))}: remove it, plain YAML is wanted")
            return None
        if kind == "int" and _LEADING_ZERO.fullmatch(text):
            self._problem(
                node, path, f"{_shown(text)} begins with a zero, octal to kubectl: write it without, or in quotes"
            )
        number = _number(text, kind)
        if number is None:
            self._problem(node, path, f"{_shown(text)} cannot be read as {kind}: correct it, or write it in quotes")
        return number

    def _refuse_size(self, node: Node, path: Path, depth: int) -> None:
        if id(node) in self.open:
            reason = "contains itself through an alias: write it out"
        elif depth > MAX_DEPTH:
            reason = f"is nested more than {MAX_DEPTH} deep: flatten it"
        else:
            reason = f"the document has more than {MAX_NODES} values, aliases expanded: shorten it"
            if any(problem.message == reason for problem in self.document.problems):
                return
        self._problem(node, path, reason)

    def _problem(self, node: Node, path: Path, message: str) -> None:
        line, column = _place(node)
        self.document.problems.append(Problem(render(path), line, column, message))


def _number(text: str, kind: str) -> int | float | None:
    if len(text) > 64:
        return None
    if kind == "int" and _INTEGER.fullmatch(text):
        sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-").replace("_", "")
        base = _BASES.get(digits[:2].lower(), 10)
        try:
            return sign * int(digits if base == 10 else digits[2:], base)
        except ValueError:
            return None
    if kind == "float" and "_" not in text:
        try:
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return None
        return None if math.isinf(number) and not text.endswith(".inf") else number
    return None


def _place(node: Node) -> tuple[int, int]:
    return (node.start_mark.line + 1, node.start_mark.column + 1)


def _is_nothing(node: Node) -> bool:
    """A key without a value: ruamel marks it at the next token, which may be lines away."""
    return isinstance(node, ScalarNode) and not node.value and not node.style


def _is_empty(document: Node | None) -> bool:
    """What stands after a last ---, which kubectl passes over."""
    return document is None or (isinstance(document, ScalarNode) and document.tag == _TAG + "null")


def _is_no_text_to_someone(key: Node) -> bool:
    bare = key.value if isinstance(key, ScalarNode) and key.style is None else ""
    kubectl = _BARE_BOOLEANS.fullmatch(bare) or _NUMBER_TO_KUBECTL.fullmatch(bare)
    return bool(kubectl) or key.tag != _TAG + "str"


def _is_clean(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(text: str) -> str:
    return ascii(text[:60])
