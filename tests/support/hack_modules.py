"""Modules of hack/, which is no package: they find each other beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

CLUSTER = Path(__file__).resolve().parents[2] / "hack" / "cluster"


def cluster_module(name: str) -> ModuleType:
    """hack/cluster/NAME.py; neither it nor what it imports beside it is left for others to import."""
    beside = [path.stem for path in CLUSTER.glob("*.py")]
    sys.path.insert(0, str(CLUSTER))
    try:
        spec = importlib.util.spec_from_file_location(f"cluster_{name}", CLUSTER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = made
        spec.loader.exec_module(made)
        return made
    finally:
        sys.path.remove(str(CLUSTER))
        for module in beside:
            sys.modules.pop(module, None)
