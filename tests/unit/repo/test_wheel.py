"""The wheel: everything under streamserve/, the console scripts, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

SCRIPTS = {"streamserve", "streamserve-operator", "streamserve-router", "streamserve-worker"}
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


def test_a_wheel_holds_the_namespace_package_and_its_scripts_only(root: Path, tmp_path: Path) -> None:
    # The build backend itself, as `uv build --wheel --no-build-isolation` calls it: no network.
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=root, check=True, capture_output=True, text=True, timeout=60
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = wheel.namelist()
        entry_points = next(wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    outside = [n for n in names if not n.startswith("streamserve/") and ".dist-info/" not in n]
    assert outside == []
    parts = {name.split("/")[1] for name in names if name.startswith("streamserve/")}
    assert parts >= {"v1", "contract", "runtime", "operator", "router", "worker", "cli"}
    assert "streamserve/__init__.py" not in names
    assert {line.split(" =")[0] for line in entry_points.splitlines() if " = " in line} == SCRIPTS
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
