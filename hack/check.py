"""Everything that must hold before a commit, one line a step: `make check`.

    python hack/check.py [STEP …]      all steps, or the named ones

A step is a command that ends with 0. One that fails shows its output and what to do about it; the others run
all the same, so that one call shows everything. What a step needs beyond .venv is built before it, once, with progress
on stderr. Nothing here writes into the checkout but the tools' caches and .cache.

Of tests/chart the last step runs what Helm and Kubernetes' schemas alone can tell; what takes an API server, Redis,
Prometheus, cert-manager or promtool is `make check-chart`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from house_rules import File, problems

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LIMIT_SECONDS = 600
BUILD_LIMIT_SECONDS = 3600

# What mypy says of tests, beyond how they call the product, is a matter of taste there.
UNASKED = (
    *("arg-type", "assignment", "attr-defined", "call-overload", "comparison-overlap", "dict-item"),
    *("func-returns-value", "import-not-found", "index", "list-item", "misc", "name-defined", "no-any-return"),
    *("operator", "return-value", "type-arg", "union-attr", "unused-ignore", "var-annotated"),
)

CHART = (
    *(
        f"tests/chart/test_{name}.py"
        for name in ("render", "refusals", "rules", "operator", "credentials", "notes", "quoting")
    ),
    "tests/chart/test_autoscaling.py::test_kubernetes_would_take_the_autoscalers",
)


@dataclass(frozen=True, slots=True)
class Step:
    """`needs` are programs that build what the command needs, and do nothing where it is there."""

    name: str
    what: str
    command: tuple[str, ...]
    remedy: str
    needs: tuple[str, ...] = ()


STEPS = (
    Step(
        "format",
        "ruff format",
        (str(BIN / "ruff"), "format", "--check", "--quiet", "."),
        "run `ruff format .`",
    ),
    Step(
        "lint",
        "ruff check",
        (str(BIN / "ruff"), "check", "--quiet", "."),
        "run `ruff check --fix .`, mend the rest",
    ),
    Step(
        "types",
        "mypy --strict",
        (str(BIN / "mypy"), "--no-error-summary"),
        "give each line above a type that holds",
    ),
    Step(
        "calls",
        "mypy, calls in tests",
        (
            *(str(BIN / "mypy"), "--no-error-summary", "--cache-dir=.mypy_cache/calls", "tests", "bench", "hack"),
            *(f"--disable-error-code={code}" for code in UNASKED),
        ),
        "a test that `make test` leaves out would not run: give each call above the arguments that it takes",
    ),
    Step(
        "layers",
        "import-linter",
        (str(BIN / "lint-imports"),),
        "move what is shared down a layer: CONTRIBUTING.md",
    ),
    Step(
        "protos",
        "buf lint",
        (str(BIN / "buf"), "lint", "proto"),
        "mend the lines above in proto/streamserve/v1",
    ),
    Step("generated", "generated files", (sys.executable, "hack/generate.py", "--check"), "run `make generate`"),
    Step(
        "house",
        "house rules",
        (sys.executable, "hack/check.py", "--house"),
        "each line above says what to do",
    ),
    Step(
        "chart",
        "Helm chart",
        (sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", *CHART),
        "mend charts/; golden files after a change that is meant: tests/chart/test_render.py",
        needs=("hack/helm/build.py", "hack/helm/validator.py"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make check", description="Everything that must hold before a commit.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=" ".join(step.name for step in STEPS))
    parser.add_argument("--house", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.house:
        return house()
    if unknown := set(args.steps) - {step.name for step in STEPS}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    chosen = [step for step in STEPS if not args.steps or step.name in args.steps]
    failed = [step for step in chosen if not run(step)]
    if failed:
        print(f"check: {len(failed)} of {len(chosen)} steps failed: {', '.join(step.name for step in failed)}")
    return 1 if failed else 0


def run(step: Step) -> bool:
    """Run one step and print its line; its output only where it failed."""
    started = time.monotonic()
    try:
        for program in step.needs:
            build(program)
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        ok, output = done.returncode == 0, done.stdout
    except FileNotFoundError:
        ok, output = False, f"{step.command[0]} is not there; run make env\n"
    except subprocess.CalledProcessError as failed:
        ok, output = False, f"{failed.cmd[-1]} failed; the lines above say why, and nothing was checked\n"
    except subprocess.TimeoutExpired as late:
        ok, output = False, f"no end after {late.timeout:.0f} s\n"
    seconds = time.monotonic() - started
    if not ok:
        print(output.rstrip(), flush=True)
    remedy = "" if ok else f"; {step.remedy}"
    print(f"check: {step.what:<16} {'ok' if ok else 'FAILED'} ({seconds:.1f} s){remedy}", flush=True)
    return ok


def build(program: str) -> None:
    """Raises CalledProcessError where it fails. What it says while it lasts is seen; its result, a path, is not."""
    command = [sys.executable, program]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=BUILD_LIMIT_SECONDS)


def house() -> int:
    """The rules of house_rules.py on what git tracks and on new files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout.decode()
    broken = problems({name: read(ROOT / name) for name in listed.split("\0") if (ROOT / name).is_file()})
    print("\n".join(broken))
    return 1 if broken else 0


def read(path: Path) -> File:
    raw = path.read_bytes()
    try:
        return File(len(raw), raw.decode())
    except UnicodeDecodeError:
        return File(len(raw), None)


if __name__ == "__main__":
    sys.exit(main())
