"""Builds Helm from its Go module, once: what `make check` renders the chart with.

    python hack/helm/build.py            build it unless it is cached; print its path
    python hack/helm/build.py --path     print where it is, or would be

How, and where the cache is: hack/go_programs.py. Which Helm: go.mod, a module of its own that has Helm as its tool.
The Kubernetes version linked in is what `helm template` and `helm lint` take the cluster's for.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from go_programs import Program, command_line

HERE = Path(__file__).resolve().parent

VERSION = "v3.20.2"
KUBERNETES_MINOR = "35"
HELM = Program(
    name="helm",
    module=HERE,
    package="helm.sh/helm/v3/cmd/helm",
    linked=(
        f"helm.sh/helm/v3/internal/version.version={VERSION}",
        *(
            f"helm.sh/helm/v3/pkg/{package}.k8sVersion{part}"
            for package in ("lint/rules", "chartutil")
            for part in ("Major=1", f"Minor={KUBERNETES_MINOR}")
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(command_line([HELM], "Build Helm, once.", None))
