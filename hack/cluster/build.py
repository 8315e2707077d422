"""Builds the API server of the tests (etcd and kube-apiserver in one binary) from Go modules, once.

    python hack/cluster/build.py            build it unless it is cached; print its path
    python hack/cluster/build.py --path     print where it is, or would be

How, and where the cache is: hack/go_programs.py. A cold build takes 5 to 20 minutes and shows how far it has come.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from go_programs import Program, command_line

HERE = Path(__file__).resolve().parent

KUBERNETES = "1.35.3"
VERSION = "k8s.io/component-base/version"
MAJOR, MINOR, _ = KUBERNETES.split(".")
APISERVER = Program(
    name="apiserver",
    module=HERE,
    package="./apiserver",
    sources=("apiserver/main.go",),
    linked=(f"{VERSION}.gitVersion=v{KUBERNETES}", f"{VERSION}.gitMajor={MAJOR}", f"{VERSION}.gitMinor={MINOR}"),
)

if __name__ == "__main__":
    sys.exit(command_line(APISERVER, "Build the tests' API server, once.", None))
