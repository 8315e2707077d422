"""`streamserve validate FILE`: is this StreamPair right, without a cluster, an engine or a network.

Exit status 0: valid; 1: problems, one a line as FILE:LINE:COL: path: message; 2: wrong usage.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from streamserve.contract.streampair import Problem, StreamPair, cluster_only, fields, leaves
from streamserve.contract.streampair.loader import Loaded, read
from streamserve.contract.streampair.nodes import MAX_BYTES
from streamserve.contract.streampair.paths import read_file, resolve_model_paths

_EPILOG = """\
what is checked:
  the YAML itself, every field's name, type and bounds, the rules between fields, values that this
  release does not have, and that model folders beside the file exist. Nothing is contacted.

example:
  $ streamserve validate examples/local/streampair.yaml
  valid: 19 fields set, StreamPair tiny

  $ streamserve validate broken.yaml
  broken.yaml:9:5: spec.speculation.maxDepht: unknown field (did you mean spec.speculation.maxDepth?)

  $ kubectl get streampair llama -o yaml | streamserve validate -

exit status:
  0 valid, 1 problems found, 2 wrong usage
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `validate`."""
    parser = subparsers.add_parser(
        "validate",
        help="check a StreamPair file offline",
        description="Check a StreamPair file offline, with line numbers and suggestions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the YAML file, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print what is wrong, or that nothing is."""
    loaded, name, base = _read(args.file)
    problems = list(loaded.problems)
    if loaded.pair is not None:
        resolved = resolve_model_paths(loaded.pair, base, loaded.document.where, absolute_may_miss=True)
        if isinstance(resolved, list):
            problems = resolved
    valid = loaded.pair is not None and not problems
    notes = _notes(loaded.pair, loaded) if valid and loaded.pair is not None else []
    count = len(leaves(loaded.pair, given_only=True)) if loaded.pair is not None else 0
    if args.json:
        _print_json(name, valid, count, problems, notes)
    elif valid and loaded.pair is not None:
        print(f"valid: {_count(count, 'field')} set, StreamPair {loaded.pair.metadata.name}")
        for note in notes:
            print(f"note: {note}")
    else:
        for problem in problems:
            print(problem.format(name))
    return 0 if valid else 1


def _read(file: str) -> tuple[Loaded, str, Path]:
    if file == "-":
        return read(sys.stdin.buffer.read(MAX_BYTES + 1)), "<stdin>", Path.cwd()
    path = Path(file)
    return read_file(path), file, path.parent


def _notes(pair: StreamPair, loaded: Loaded) -> list[str]:
    notes = [f"{path}: only on a cluster, `streamserve up` does not use it" for path in cluster_only(pair)]
    for path in loaded.document.bare_words:
        line, _ = loaded.document.where(path)
        notes.append(f"{fields.render(path)} (line {line}): quote this word, kubectl reads it bare as a boolean")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_json(name: str, valid: bool, count: int, problems: list[Problem], notes: list[str]) -> None:
    answer = {
        "file": name,
        "valid": valid,
        "fields_set": count,
        "problems": [asdict(problem) for problem in problems],
        "notes": notes,
    }
    print(json.dumps(answer, indent=2))
