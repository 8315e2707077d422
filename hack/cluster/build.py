"""Builds the programs of the tests' clusters from Go modules, once.

    python hack/cluster/build.py                    the API server of tests/controlplane (etcd and kube-apiserver)
    python hack/cluster/build.py all                that, and all that `make cluster-up` runs
    python hack/cluster/build.py --path [NAME]      print where it is, or would be

How, and where the cache is: hack/go_programs.py. A cold build takes 5 to 20 minutes and shows how far it has come.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from go_programs import Program, command_line

HERE = Path(__file__).resolve().parent

KUBERNETES_VERSION = "1.35.3"
VERSION = "k8s.io/component-base/version"
MAJOR, MINOR, _ = KUBERNETES_VERSION.split(".")
LINKED = (f"{VERSION}.gitVersion=v{KUBERNETES_VERSION}", f"{VERSION}.gitMajor={MAJOR}", f"{VERSION}.gitMinor={MINOR}")
APISERVER = Program("apiserver", HERE, "./apiserver", ("apiserver/main.go",), LINKED)
KUBERNETES = Program("kubernetes", HERE, "./kubernetes", ("kubernetes/main.go",), LINKED)
PAUSE = Program("pause", HERE, "./pause", ("pause/main.go",))
COREDNS = Program("coredns", HERE / "coredns", ".", ("main.go",))

if __name__ == "__main__":
    programs = [APISERVER, KUBERNETES, PAUSE, COREDNS]
    sys.exit(command_line(programs, "Build the programs of the tests' clusters, once.", None))
