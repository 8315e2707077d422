"""Installs kubernetes-validate, Kubernetes' own schemas as a command, into .cache/chart, for `make check`.

It is 117 MB, so it is no part of .venv. Each file is checked against its hash in requirements/chart.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from env import ROOT, Refused, digest, find_uv, run

HOME = ROOT / ".cache" / "chart"
REQUIREMENTS = ROOT / "requirements" / "chart.txt"
STAMP = HOME / "streamserve-chart"


def main() -> int:
    wanted = digest(REQUIREMENTS.read_bytes(), sys.version.encode())
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    print("kubernetes-validate: installing it into .cache/chart (117 MB, once)", file=sys.stderr, flush=True)
    try:
        uv = find_uv()
        run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(HOME)], "creating .cache/chart")
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS)]
        run([*install, "--python", str(HOME / "bin" / "python")], "installing kubernetes-validate")
    except Refused as reason:
        print(f"kubernetes-validate: {reason}", file=sys.stderr)
        return 1
    STAMP.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
