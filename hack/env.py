"""The project's virtual environment: when to build it, what goes in, and why it may refuse.

    python hack/env.py [--venv .venv] [--requirements requirements/worker-cpu.txt]

In order: refuse what cannot work (another platform, too little disk); fetch uv, pinned and hashed, unless it
is there already; create the environment; install the compiled requirements, every file checked against its
hash; install the project itself, editable. What was done is remembered as a digest in the environment, so a
second run costs nothing. Standard library only: this runs before anything is installed. Progress: stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "streamserve-env.json"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FREE_GIB = 12
HEARTBEAT_SECONDS = 15.0
INSTALL_LIMIT_SECONDS = 1800.0


class Refused(Exception):
    """The environment cannot be built here; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make env", description="Build the project's virtual environment.")
    parser.add_argument("--venv", default=".venv")
    parser.add_argument("--requirements", default="requirements/worker-cpu.txt")
    args = parser.parse_args(argv)
    try:
        refuse_platform(platform.system(), platform.machine(), sys.version_info[:2])
        build(ROOT / args.venv, ROOT / args.requirements)
    except Refused as reason:
        print(f"make env: {reason}", file=sys.stderr)
        return 1
    return 0


def build(venv: Path, requirements: Path) -> None:
    """Bring `venv` to what the requirements and pyproject.toml ask for; do nothing where it is."""
    packages = digest(requirements.read_bytes(), venv_python_version(venv).encode())
    project = digest(project_tables((ROOT / "pyproject.toml").read_text()))
    stamp = venv / STAMP
    done = read_stamp(stamp) if (venv / "bin" / "python").exists() else {}
    if done == {"packages": packages, "project": project}:
        return
    started = time.monotonic()
    if done.get("packages") != packages:
        refuse_disk(shutil.disk_usage(ROOT).free)
        uv = find_uv()
        if not (venv / "bin" / "python").exists():
            say(f"creating {venv.name} with Python {platform.python_version()}")
            run(
                [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(venv)],
                "creating the environment",
            )
        packages = digest(requirements.read_bytes(), venv_python_version(venv).encode())
        count = count_packages(requirements.read_text())
        say(f"installing {count} packages (about 6 GB) from {requirements.name}")
        # Compiled once here: a dozen processes import vLLM when the demo starts, and where PYTHONDONTWRITEBYTECODE is
        # set each of them would compile all of it for itself, every time.
        install = ["pip", "install", "--quiet", "--no-deps", "--compile-bytecode", "--require-hashes"]
        install += ["-r", str(requirements)]
        run([uv, *install, "--python", str(venv / "bin" / "python")], "installing packages")
    else:
        uv = find_uv()
    say("installing streamserve itself, editable")
    editable = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    run([uv, *editable, "--python", str(venv / "bin" / "python")], "installing streamserve")
    stamp.write_text(json.dumps({"packages": packages, "project": project}))
    say(f"{venv.name} is ready after {time.monotonic() - started:.0f} s")


def refuse_platform(system: str, machine: str, python: tuple[int, int]) -> None:
    """Raises Refused unless this is Linux on x86-64 with Python 3.11 or 3.12."""
    if (system, machine) not in {("Linux", "x86_64"), ("Linux", "AMD64")}:
        raise Refused(
            f"the CPU build of vLLM is made for Linux on x86-64; this is {system} on {machine}. "
            "Without vLLM: `pip install -e '.[router,dev]'` and `streamserve up --engine Simulator`."
        )
    if not (3, 11) <= python <= (3, 12):
        found = ".".join(map(str, python))
        raise Refused(f"Python 3.11 or 3.12 is needed; this is {found}. Name one: make env PYTHON=/path/to/python3.11")


def refuse_disk(free_bytes: int) -> None:
    """Raises Refused when the packages and their cache would not fit."""
    if free_bytes < FREE_GIB * 2**30:
        raise Refused(
            f"{FREE_GIB} GiB of free disk are needed here and {free_bytes / 2**30:.1f} GiB are left. "
            "Free some (`uv cache clean` empties uv's cache), then run make env again."
        )


def venv_python_version(venv: Path) -> str:
    """The version that `venv` runs, or this interpreter's where there is none yet."""
    config = venv / "pyvenv.cfg"
    if not config.exists():
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", config.read_text(), re.MULTILINE)
    if found is None or found[1] not in {"3.11", "3.12"}:
        version = found[1] if found else "unknown"
        raise Refused(f"{venv.name} has Python {version}; 3.11 or 3.12 is needed. Remove {venv.name} and run again.")
    return found[1]


def project_tables(pyproject: str) -> bytes:
    """The parts of pyproject.toml that an installed project depends on; a linter's setting is not one."""
    parsed = tomllib.loads(pyproject)
    tables = [parsed.get("build-system"), parsed.get("project"), parsed.get("tool", {}).get("hatch")]
    return json.dumps(tables, sort_keys=True).encode()


def count_packages(requirements: str) -> int:
    """How many names the file holds; one pinned twice (by Python version) counts once."""
    return len(set(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[.*\])?==", requirements, re.MULTILINE)))


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(stamp: Path) -> dict[str, str]:
    try:
        read = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def find_uv() -> str:
    """The pinned uv: from .cache when it is there, else installed there with this Python's pip."""
    pinned = ROOT / "requirements" / "uv.txt"
    wanted = re.search(r"^uv==(\S+)", pinned.read_text(), re.MULTILINE)
    assert wanted is not None, "requirements/uv.txt pins uv"
    home = ROOT / ".cache" / f"uv-{wanted[1]}"
    program = home / "bin" / "uv"
    if program.exists():
        return str(program)
    say(f"fetching uv {wanted[1]}, which installs the rest")
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--disable-pip-version-check",
        "-r",
        str(pinned),
    ]
    run([*pip_command(), *install, "--upgrade", "--target", str(home)], "fetching uv")
    if not program.exists():
        raise Refused(f"uv was installed to {home.relative_to(ROOT)} without its program. Remove it, try again.")
    return str(program)


def pip_command() -> list[str]:
    """This Python's pip, or that of a throw-away environment where it has none of its own."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], check=False, capture_output=True, timeout=60).returncode == 0:
        return own
    helper = ROOT / ".cache" / "bootstrap"
    command = [sys.executable, "-m", "venv", str(helper)]
    made = subprocess.run(command, check=False, capture_output=True, timeout=120)
    if made.returncode != 0:
        shutil.rmtree(helper, ignore_errors=True)
        raise Refused("this Python has neither pip nor venv. Debian and Ubuntu: apt-get install python3-venv")
    return [str(helper / "bin" / "python"), "-m", "pip"]


def tool_environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given` for uv and pip: a mirror or certificate that is set for pip serves uv too, unless uv has its own."""
    chosen = {**given, "UV_PYTHON_DOWNLOADS": "never", "PIP_ROOT_USER_ACTION": "ignore"}
    chosen.pop("VIRTUAL_ENV", None)
    for theirs, ours in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if theirs in given:
            chosen.setdefault(ours, given[theirs])
    if SYSTEM_CERTIFICATES.exists():  # they know a company's proxy; uv's own list does not
        chosen.setdefault("UV_SYSTEM_CERTS", "true")
    return chosen


def run(command: Sequence[str], what: str) -> None:
    """Run one step with a sign of life every few seconds. Raises Refused when it fails."""
    environment = tool_environment(os.environ)
    started, free_before = time.monotonic(), shutil.disk_usage(ROOT).free
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr, stderr=sys.stderr) as process:
        while True:
            try:
                code = process.wait(HEARTBEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                waited = time.monotonic() - started
                written = max(0, free_before - shutil.disk_usage(ROOT).free) / 1e9
                say(f"still {what}: {waited:.0f} s, {written:.1f} GB written")
                if waited > INSTALL_LIMIT_SECONDS:
                    process.kill()
                    raise Refused(
                        f"{what} took more than {INSTALL_LIMIT_SECONDS / 60:.0f} minutes. Try again."
                    ) from None
            except KeyboardInterrupt:
                process.terminate()
                raise Refused(f"interrupted while {what}; run make env again to go on.") from None
    if code != 0:
        raise Refused(
            f"{what} failed (exit status {code}); the lines above say why. If a package index could "
            "not be reached, check the network or proxy settings and run make env again: it goes on from there."
        )


def say(line: str) -> None:
    print(f"make env: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
