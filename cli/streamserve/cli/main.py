"""`streamserve`: one command, a subcommand per task.

Only the module of the subcommand that was asked for is imported, so that `--help` answers at once. Every failure is
one clear line on stderr; STREAMSERVE_DEBUG=1 adds the traceback. Exit status: 0 done, 1 failed, 2 refused before
anything was started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Protocol, cast

from streamserve.cli.errors import CommandError

DESCRIPTION = "Disaggregated LLM serving with adaptive speculative decoding."
EPILOG = """\
examples:
  streamserve up -f examples/local/streampair.yaml       everything on this machine, until Ctrl-C
  streamserve generate "Tell me about tides"             one prompt, streamed
  streamserve validate examples/local/streampair.yaml    check a file, offline
  streamserve explain --prompt-tokens 500                why a lane would be chosen
  streamserve top                                        lanes and workers, live

`streamserve COMMAND --help` describes one command. STREAMSERVE_DEBUG=1 shows tracebacks."""

# name -> (module, summary in the list of commands)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("streamserve.cli.up", "run a StreamPair on this machine until Ctrl-C"),
    "generate": ("streamserve.cli.generate", "send one prompt and stream the answer"),
    "validate": ("streamserve.cli.validate", "check a StreamPair file, offline"),
    "explain": ("streamserve.cli.explain", "show how a request would be routed, term by term"),
    "top": ("streamserve.cli.top", "watch lanes and workers"),
}

Subparsers = argparse._SubParsersAction


class Command(Protocol):
    """What the module of a subcommand offers."""

    def add_parser(self, subparsers: Subparsers[argparse.ArgumentParser]) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    _write_what_the_terminal_can()
    name = next((word for word in words if not word.startswith("-")), "")
    command = cast(Command, import_module(COMMANDS[name][0])) if name in COMMANDS else None
    args = _parser(name, command).parse_args(words)
    if command is None:
        raise AssertionError("argparse lets no unknown command through")
    try:
        return command.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as in `streamserve top | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error)


def _write_what_the_terminal_can() -> None:
    """Where stdout is not UTF-8 a sign that it lacks becomes a question mark, not the end of the command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _parser(name: str, command: Command | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamserve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for known, (_, summary) in COMMANDS.items():
        if known == name and command is not None:
            command.add_parser(subparsers)
        else:
            subparsers.add_parser(known, help=summary)
    return parser


class _Version(argparse.Action):
    """Reads the version only when it is asked for: the package metadata costs a few milliseconds."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"streamserve {metadata.version('streamserve')}")
        parser.exit()


def _report(error: Exception) -> int:
    if os.environ.get("STREAMSERVE_DEBUG") == "1":
        traceback.print_exception(error)
    for line in _describe(error).splitlines():
        print(f"streamserve: {line}", file=sys.stderr)
    return error.exit_status if isinstance(error, CommandError) else 1


def _describe(error: Exception) -> str:
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    hint = "" if os.environ.get("STREAMSERVE_DEBUG") == "1" else "; STREAMSERVE_DEBUG=1 shows where"
    return f"{type(error).__name__}: {error}{hint}"


if __name__ == "__main__":
    sys.exit(main())
