"""What an operator of an earlier commit left on an API server: frozen once into YAML, planted by tests.

    python -m tests.support.older_operator df531ae     # writes tests/controlplane/faults/older/df531ae-*.yaml
    pair, *children = plant(bench, "df531ae-vllm")     # as if that operator had just been stopped
    bench.install(crd("df531ae"))                      # the StreamPair as its API server knew it

To freeze, the operator of that commit is run with that commit's CRDs on a real API server, beside that commit's
operator_bench.py, until it rests. Kept is what it wrote: specs, labels, annotations, status, and which
fields it holds (managedFields: what the next operator no longer applies goes only because of them). Left out is what
a server gives anew: uids, versions, addresses. The pair's uid is THE-PAIR.

To plant, the CRDs are opened first, so that nothing is refused or pruned which a former CRD let through.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tests.support import api_server
from tests.support.api_server import ApiServer
from tests.support.operator_bench import CHILDREN, MERGE, Body, OperatorBench
from tests.support.processes import wait_until

from streamserve.contract.streampair.crd import definitions
from streamserve.operator.edge.resources import BY_KIND
from streamserve.operator.naming import FIELD_MANAGER

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "controlplane" / "faults" / "older"
NAMESPACE = "faults"
SPECS: dict[str, Body] = {
    "simulator": {"prefill": {"replicas": 1, "scaling": {"mode": "External"}}},
    "vllm": {"prefill": {"replicas": 1, "scaling": {"mode": "External"}}, "engine": {"kind": "Vllm"}},
}
SOURCES = ("proto", "operator", "router", "worker", "cli")
THE_PAIR = "THE-PAIR"
_KEPT = ("name", "labels", "annotations", "ownerReferences")
_ADDRESSES = ("clusterIP", "clusterIPs")
_HEADLESS = ("None", ["None"])
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def freeze(commit: str, spec: str) -> Path:
    with tempfile.TemporaryDirectory() as made:
        tree, directory = Path(made) / "tree", Path(made) / "run"
        directory.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True, timeout=60)
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(tree, filter="data")
        # Before what is installed, and before this tree: everything that runs now is of that commit, but this file.
        roots = os.pathsep.join(map(str, (tree, *(tree / source for source in SOURCES))))
        command = [sys.executable, __file__, "--in", str(tree), str(directory), str(api_server._binary()), spec]
        environment = {**os.environ, "PYTHONPATH": roots}
        done = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, timeout=300)
    return _write(FOLDER / f"{commit}-{spec}.yaml", f"# What the operator of {commit} left.", json.loads(done.stdout))


def _write(path: Path, heading: str, bodies: list[Body]) -> Path:
    path.parent.mkdir(exist_ok=True)
    yaml = YAML(typ="safe")
    yaml.default_flow_style, yaml.width = None, 118
    with path.open("w") as file:
        file.write(f"{heading} Made by: python -m tests.support.older_operator {path.stem.partition('-')[0]}\n")
        yaml.dump_all(bodies, file)
    return path


def freeze_crd(commit: str) -> Path:
    """Without descriptions, and what it says twice once: it is read by an API server only."""
    found = subprocess.run(
        ["git", "show", f"{commit}:crds/streampairs.yaml"], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    return _write(
        _crd_path(commit), f"# The StreamPair of {commit}.", [_shared(YAML(typ="safe").load(found.stdout), {})]
    )


def crd(commit: str) -> Body:
    found: Body = json.loads(json.dumps(YAML(typ="safe").load(_crd_path(commit))))
    return found


def _crd_path(commit: str) -> Path:
    return FOLDER / f"{commit}-crd.yaml"


def _shared(value: Any, known: dict[str, Any]) -> Any:
    """Equal objects as one, which YAML writes once."""
    if isinstance(value, dict):
        value = {key: _shared(each, known) for key, each in value.items() if not _is_prose(key, each)}
    elif isinstance(value, list):
        value = [_shared(each, known) for each in value]
    else:
        return value
    return known.setdefault(json.dumps(value), value)


def _is_prose(key: str, value: Any) -> bool:
    return key == "description" and isinstance(value, str)


def run_in(tree: Path, directory: Path, binary: Path, spec: str) -> list[Body]:
    """In a process whose `tests` and `streamserve` are those of the tree."""
    assert Path(api_server.__file__).is_relative_to(tree)
    api_server._binary = lambda: binary
    with ApiServer(directory / "server") as server:
        for path in sorted((tree / "crds").glob("*.yaml")):
            server.install(YAML(typ="safe").load(path))
        with OperatorBench(server, directory, NAMESPACE) as bench:
            return _left_behind(bench, SPECS[spec])


def _left_behind(bench: OperatorBench, spec: Body) -> list[Body]:
    bench.kubelet.start()
    operator = bench.start("older")
    uid = str(bench.create(spec)["metadata"]["uid"])
    bench.until("Ready", "True")
    bench.until("ConfigApplied", "True")
    bench.until_quiet(operator)
    assert operator.terminate() == 0
    bodies = [body for kind in ("StreamPair", *CHILDREN) for body in bench.all(kind)]
    return [json.loads(json.dumps(_cut(body)).replace(uid, THE_PAIR)) for body in bodies]


def _cut(body: Body) -> Body:
    metadata = {key: body["metadata"][key] for key in _KEPT if key in body["metadata"]}
    held = [each for each in body["metadata"]["managedFields"] if each["manager"].startswith(FIELD_MANAGER)]
    spec = {key: value for key, value in body.get("spec", {}).items() if key not in _ADDRESSES or value in _HEADLESS}
    rest = {key: body[key] for key in ("data", "status") if body.get(key)}
    api_version = BY_KIND[body["kind"]].api_version
    metadata |= {"managedFields": held} if held else {}
    return {"apiVersion": api_version, "kind": body["kind"], "metadata": metadata, "spec": spec, **rest}


def plant(bench: OperatorBench, what: str) -> list[Body]:
    """The objects as the API server has them now, the StreamPair first."""
    pair, *children = YAML(typ="safe").load_all(FOLDER / f"{what}.yaml")
    now = definitions()
    for definition in now.values():
        bench.install(_opened(definition))
    made = [_plant(bench, pair)]
    uid = made[0]["metadata"]["uid"]
    made += [_plant(bench, json.loads(json.dumps(child).replace(THE_PAIR, uid))) for child in children]
    for definition in now.values():
        bench.install(definition)
    return made


def _opened(definition: Body) -> Body:
    found: Body = json.loads(json.dumps(definition))
    for version in found["spec"]["versions"]:
        version["schema"]["openAPIV3Schema"] = {
            "type": "object",
            "properties": {"spec": _ANYTHING, "status": _ANYTHING},
        }
    return found


def _plant(bench: OperatorBench, body: Body) -> Body:
    """Spec, then status, then who holds what: each write makes its writer a holder, but for the last."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    resource = BY_KIND[body["kind"]]
    answer = bench.call("POST", resource.path(bench.namespace), {**body, "metadata": metadata})
    assert answer.ok, answer.body
    path = resource.path(bench.namespace, metadata["name"])
    if "status" in body:
        answer = bench.call("PATCH", f"{path}/status", {"status": body["status"]}, MERGE)
        assert answer.ok, answer.body

    def handed_over() -> dict[str, Any] | None:
        there = bench.call("GET", path).body
        there["metadata"]["managedFields"] = body["metadata"].get("managedFields", [])
        answer = bench.call("PUT", path, there)
        assert answer.ok or answer.status == 409, answer.body
        return {"kind": body["kind"], **answer.body} if answer.ok else None

    handed: Body = wait_until(handed_over, seconds=10, what=f"{body['kind']} {metadata['name']} is planted")
    return handed


if __name__ == "__main__":
    if sys.argv[1] == "--in":
        tree, directory, binary = map(Path, sys.argv[2:5])
        json.dump(run_in(tree, directory, binary, sys.argv[5]), sys.stdout)
    else:
        print(freeze_crd(sys.argv[1]))
        for each in SPECS:
            print(freeze(sys.argv[1], each))
