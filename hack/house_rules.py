"""What no linter looks at: where files may lie, how long they may be, and what they may not say.

Pure: `problems` takes the repository's files as values and returns one sentence for each broken rule, so the
tests feed it a made-up repository and `hack/check.py` the real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath

MAX_LINES = 600
MAX_BYTES = 1_000_000
ROOTS = ("operator", "router", "worker", "proto", "cli")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
WEIGHTS = re.compile(r"^examples/models/[^/]+/(model\.safetensors|tokenizer\.json)$")
LOCK_FILES = {"uv.lock", "poetry.lock", "Pipfile.lock"}

# Written so that no pattern matches its own source.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work/(?:main|shared|steering|\.library)|root/|home/[a-z])")
REGISTRY_HOST = re.compile(
    r"(?:pypi|files\.pythonhosted|registry\.npmjs|registry\.yarnpkg|download\.pytorch|proxy\.golang|sum\.golang)"
    r"\.(?:org|com)\b"
)
UNFINISHED = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|NotImplemented[E]rror)\b")
SKIPPED = re.compile(r"\bpytest\.(?:mark\.)?(?:skip|xfail|importorskip)|\bassert[ ]True\b")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class File:
    """One file of the repository; `text` is None for what is not text."""

    size_bytes: int
    text: str | None


def problems(files: Mapping[str, File]) -> list[str]:
    """Every broken rule, as `path[:line]: what is wrong and what to do`, in the order of the paths."""
    found: list[str] = []
    for path, file in sorted(files.items()):
        found += layout(path, file)
        if file.text is not None:
            found += words(path, file.text)
            if path.endswith(".md"):
                found += links(path, file.text, files)
    return found


def layout(path: str, file: File) -> Iterator[str]:
    name = PurePosixPath(path).name
    forbidden = [f"{root}{inner}/__init__.py" for root in ROOTS for inner in ("", "/streamserve")]
    if path in forbidden:
        yield f"{path}: remove it; a namespace folder has none (operator/__init__.py would hide Python's own)"
    if name in LOCK_FILES:
        yield f"{path}: remove it; lock files name registry hosts, requirements/*.txt pins everything"
    if file.size_bytes > MAX_BYTES and not WEIGHTS.match(path):
        yield f"{path}: {file.size_bytes / 1e6:.1f} MB; only the tiny models' weights may pass 1 MB"
    if path.endswith(".py") and not GENERATED.search(path) and file.text is not None:
        lines = file.text.count("\n")
        if lines > MAX_LINES:
            yield f"{path}: {lines} lines; past {MAX_LINES}, ask which second thing it has begun to do, and split it"


def words(path: str, text: str) -> Iterator[str]:
    python = path.endswith(".py") and not GENERATED.search(path)
    test = python and path.startswith("tests/")
    for number, line in enumerate(text.splitlines(), 1):
        if match := MACHINE_PATH.search(line):
            yield f"{path}:{number}: {match[0]}… is a path of one machine; make it relative to the repository"
        if match := REGISTRY_HOST.search(line):
            yield f"{path}:{number}: {match[0]} is a registry host; say which registry in words, or leave it out"
        if python and (match := UNFINISHED.search(line)):
            yield f"{path}:{number}: {match[0]}: finish it, or open an issue and remove the mark"
        if test and (match := SKIPPED.search(line)):
            yield f"{path}:{number}: {match[0]}: a test runs and can fail, or it is removed"


def links(path: str, text: str, files: Mapping[str, File]) -> Iterator[str]:
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for target in LINK.findall(CODE.sub("", text)):
        place = target.split("#", 1)[0]
        if not place or re.match(r"[a-z][a-z0-9+.-]*:", place):
            continue
        there = normpath(str(PurePosixPath(path).parent / place))
        if there not in files and there not in folders:
            yield f"{path}: the link to {target} leads nowhere ({there} does not exist)"
