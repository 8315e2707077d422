"""Builds cert-manager's controllers from its Go module, once: what shows that the chart's certificates work with it.

    python hack/cert_manager/build.py            build them unless they are cached; print their path
    python hack/cert_manager/build.py --path     print where they are, or would be
    python hack/cert_manager/build.py --crds     print the folder of its CustomResourceDefinitions

How, and where the cache is: hack/go_programs.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from go_programs import Program, command_line

HERE = Path(__file__).resolve().parent
MODULE = "github.com/cert-manager/cert-manager"
CERT_MANAGER = Program("cert-manager", HERE, ".", ("main.go",))


def definitions() -> Path:
    """Where the module keeps them; downloaded by the build."""
    return CERT_MANAGER.folder_of(MODULE) / "deploy" / "crds"


if __name__ == "__main__":
    if sys.argv[1:] == ["--crds"]:
        print(definitions())
        sys.exit(0)
    sys.exit(command_line([CERT_MANAGER], "Build cert-manager's controllers, once.", None))
