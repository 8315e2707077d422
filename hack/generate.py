"""Files that are derived from others: written by `make generate`, compared by `make check`.

    python hack/generate.py            write them
    python hack/generate.py --check    write nothing; exit 1 and name each file that is not what it should be

From proto/streamserve/v1/*.proto: the Python messages, their stubs and the gRPC classes. From the settings'
pydantic models: docs/settings.md, which hack/settings_table.py prints, docs/operate/streampair.md
(hack/streampair_page.py) and crds/ (hack/crds.py). From crds/ the chart's templates of them, and from the chart's
values docs/operate/values.md: hack/chart.py makes both. The chart's dashboard.json from the table in hack/dashboard.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import chart
import dashboard

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
CRDS = ("streampairs", "streampairscalers")
API = "streamserve/v1"
LIMIT_SECONDS = 120


class Failed(Exception):
    """A generator did not run; the message is what it said."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make generate", description="Write what is derived.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    args = parser.parse_args(argv)
    try:
        crds = generated_crds()
        wanted = {**generated_protos(), **generated_settings(), **crds, **generated_chart(crds)}
    except Failed as reason:
        print(f"generate: {reason}", file=sys.stderr)
        return 1
    stale = [path for path, text in sorted(wanted.items()) if not path.exists() or path.read_bytes() != text]
    orphans = sorted(set(proto_outputs(PROTO / API)) - set(wanted))
    if args.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what its source gives; run make generate", file=sys.stderr)
        for path in orphans:
            print(f"{path.relative_to(ROOT)} has no source any more; remove it", file=sys.stderr)
        return 1 if stale or orphans else 0
    for path in stale:
        path.write_bytes(wanted[path])
        print(f"generate: wrote {path.relative_to(ROOT)}", file=sys.stderr)
    for path in orphans:
        path.unlink()
        print(f"generate: removed {path.relative_to(ROOT)}, its source is gone", file=sys.stderr)
    return 0


def generated_protos() -> dict[Path, bytes]:
    sources = sorted(str(path) for path in (PROTO / API).glob("*.proto"))
    with tempfile.TemporaryDirectory() as out:
        outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
        call([sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTO), *outputs, *sources])
        return {PROTO / API / path.name: path.read_bytes() for path in proto_outputs(Path(out) / API)}


def generated_settings() -> dict[Path, bytes]:
    scripts = {"settings.md": "settings_table.py", "operate/streampair.md": "streampair_page.py"}
    return {ROOT / "docs" / page: call([sys.executable, f"hack/{script}"]) for page, script in scripts.items()}


def generated_crds() -> dict[Path, bytes]:
    script = str(ROOT / "hack" / "crds.py")
    return {ROOT / "crds" / f"{name}.yaml": call([sys.executable, script, name]) for name in CRDS}


def generated_chart(crds: dict[Path, bytes]) -> dict[Path, bytes]:
    folder = ROOT / "charts" / "streamserve" / "templates" / "crds"
    templates = {folder / path.name: chart.crd_template(text.decode()).encode() for path, text in crds.items()}
    return {
        **templates,
        ROOT / "docs" / "operate" / "values.md": chart.values_page().encode(),
        ROOT / "charts" / "streamserve" / "dashboard.json": dashboard.text().encode(),
    }


def proto_outputs(folder: Path) -> list[Path]:
    return [path for pattern in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py") for path in folder.glob(pattern)]


def call(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=LIMIT_SECONDS)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[1:4])} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
