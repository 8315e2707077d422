"""Modules of hack/, which is no package: they find each other beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HACK = Path(__file__).resolve().parents[2] / "hack"
CLUSTER = HACK / "cluster"


def cluster_module(name: str) -> ModuleType:
    """hack/cluster/NAME.py; neither it nor what it imports beside it is left for others to import."""
    beside = [path.stem for path in CLUSTER.glob("*.py")]
    sys.path.insert(0, str(CLUSTER))
    try:
        return _loaded(f"cluster_{name}", CLUSTER / f"{name}.py")
    finally:
        sys.path.remove(str(CLUSTER))
        for module in beside:
            sys.modules.pop(module, None)


def image_builder() -> ModuleType:
    """hack/images/build.py."""
    before = list(sys.path)
    try:
        return _loaded("images_build", HACK / "images" / "build.py")
    finally:
        sys.path[:] = before


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
