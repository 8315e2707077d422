"""With cert-manager: its own controllers and definitions on a real API server make what the chart asks them for, and
processes of ours take it. A CA issuer; nothing here runs cert-manager's webhook."""

from __future__ import annotations

import base64
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, ROOT, Manifest, Render, RunHelm, named, of_kind, pod_specs
from tests.chart.test_credentials import NAMES, mounted
from tests.support.api_server import ApiServer
from tests.support.leaves import DAY, Signer
from tests.support.processes import Process, wait_until

from streamserve.runtime import grpc as transport
from streamserve.runtime.grpc import GrpcServer

BUILD = ROOT / "hack" / "cert_manager" / "build.py"
ISSUED = {
    ("serving", "streamserve-operator-tls"): NAMES["streamserve-operator"],
    ("serving", "streamserve-redis-tls"): NAMES["streamserve-redis"],
    ("serving", "streamserve-tls"): NAMES["streamserve"],
    ("serving", "streamserve-client-tls"): NAMES["streamserve-client"],
    ("llm", "streamserve-tls"): {"pod.streamserve", "*.llm.svc", "*.llm.svc.cluster.local", "localhost"},
    ("llm", "streamserve-client-tls"): {"client.streamserve"},
}


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    server: ApiServer
    signer: Signer
    notes: str

    def certificate(self, namespace: str, name: str) -> Manifest:
        path = f"/apis/cert-manager.io/v1/namespaces/{namespace}/certificates/{name}"
        return self.server.call("GET", path).body

    def is_ready(self, namespace: str, name: str) -> bool:
        said = self.certificate(namespace, name).get("status", {}).get("conditions", ())
        return any((each["type"], each["status"]) == ("Ready", "True") for each in said)

    def secret(self, namespace: str, name: str) -> Manifest:
        found = self.server.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        assert found.ok, found.body
        return found.body

    def leaf(self, namespace: str, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(base64.b64decode(self.secret(namespace, name)["data"]["tls.crt"]))


@pytest.fixture(scope="module")
def world(helm: RunHelm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The chart installed where cert-manager is, for two namespaces, with a ClusterIssuer called ours."""
    folder = tmp_path_factory.mktemp("cert-manager")
    now = datetime.now(UTC).replace(microsecond=0)
    signer = Signer("ours", begins=now - DAY, ends=now + 3_650 * DAY)
    with ApiServer(folder / "api-server") as server:
        for path in sorted(Path(_asked("--crds")).glob("*.yaml")):
            server.install(YAML(typ="safe").load(path))
        for name in ("cert-manager", "serving", "llm"):
            assert server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).ok
        data = {
            key: base64.b64encode(pem).decode() for key, pem in zip(("tls.crt", "tls.key"), signer.pem, strict=True)
        }
        authority = {"metadata": {"name": "authority"}, "type": "kubernetes.io/tls", "data": data}
        assert server.call("POST", "/api/v1/namespaces/cert-manager/secrets", authority).ok
        issuer = {
            "apiVersion": "cert-manager.io/v1",
            "kind": "ClusterIssuer",
            "metadata": {"name": "ours"},
            "spec": {"ca": {"secretName": "authority"}},
        }
        assert server.call("POST", "/apis/cert-manager.io/v1/clusterissuers", issuer).ok
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        command = [_asked("--path"), "--kubeconfig", str(kubeconfig)]
        assert Path(command[0]).exists(), f"{command[0]} is not there: run `make check-chart`, which builds it"
        controllers = Process("cert-manager", command, folder).start()
        try:
            values = ("--set", "tls.certManager.issuer.name=ours", "--set", "namespaces={serving,llm}")
            done = helm(
                *("install", "streamserve", str(CHART), "--namespace", "serving", *values), KUBECONFIG=str(kubeconfig)
            )
            assert done.returncode == 0, done.stderr
            made = World(server, signer, done.stdout.partition("\nNOTES:\n")[2])
            wait_until(
                lambda: all(made.is_ready(*place) for place in ISSUED),
                seconds=60,
                what="every certificate is issued",
                every_seconds=0.2,
                explain=lambda: controllers.log[-3000:],
            )
            yield made
        finally:
            controllers.kill()


def _asked(what: str) -> str:
    done = subprocess.run([sys.executable, str(BUILD), what], check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.strip()


@pytest.mark.parametrize("place", ISSUED, ids="/".join)
def test_each_certificate_is_signed_for_the_names_that_the_chart_itself_would_sign(
    world: World, place: tuple[str, str]
) -> None:
    found = world.leaf(*place)
    found.verify_directly_issued_by(world.signer.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == ISSUED[place]
    usage = set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    authority = base64.b64decode(world.secret(*place)["data"]["ca.crt"])
    assert x509.load_pem_x509_certificate(authority) == world.signer.certificate


def test_the_notes_say_whom_to_wait_for(world: World) -> None:
    assert "cert-manager's, of ClusterIssuer ours" in world.notes
    assert "wait --for=condition=Ready certificate --all" in world.notes
    assert "The operator renews them" not in world.notes


async def test_a_client_and_a_pod_with_these_files_take_each_other(world: World, tmp_path: Path) -> None:
    pod, client = world.secret("llm", "streamserve-tls"), world.secret("llm", "streamserve-client-tls")
    server = GrpcServer("127.0.0.1:0", services=(), tls=mounted(pod, tmp_path))
    address = await server.start()
    files = dataclasses.replace(mounted(client, tmp_path), peer_name="pod.streamserve")
    try:
        async with transport.channel(address, files) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        other = _of_another_authority(tmp_path)
        async with transport.channel(address, dataclasses.replace(other, peer_name="pod.streamserve")) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    finally:
        await server.stop(0)


def _of_another_authority(tmp_path: Path) -> Any:
    now = datetime.now(UTC)
    signer = Signer("theirs", begins=now - DAY, ends=now + 30 * DAY)
    pems = (signer.pem[0], *signer.leaf(begins=now - timedelta(hours=1)))
    data = {
        key: base64.b64encode(pem).decode() for key, pem in zip(("ca.crt", "tls.crt", "tls.key"), pems, strict=True)
    }
    return mounted({"metadata": {"name": "theirs"}, "data": data}, tmp_path)


def test_cert_manager_renews_with_a_new_key(world: World) -> None:
    """Asked as its own command asks: by the condition Issuing."""
    place = ("llm", "streamserve-client-tls")
    before = world.leaf(*place)
    body = world.certificate(*place)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    asked = {"type": "Issuing", "status": "True", "reason": "ByHand", "message": "", "lastTransitionTime": now}
    status = {**body["status"], "conditions": [*body["status"]["conditions"], asked]}
    path = f"/apis/cert-manager.io/v1/namespaces/{place[0]}/certificates/{place[1]}/status"
    assert world.server.call("PUT", path, {**body, "status": status}).ok
    wait_until(lambda: world.leaf(*place) != before, seconds=60, what="another certificate", every_seconds=0.2)
    after = world.leaf(*place)
    after.verify_directly_issued_by(world.signer.certificate)
    assert after.public_key() != before.public_key()


def test_neither_the_chart_nor_the_operator_signs_and_the_operator_reads_no_secret(render: Render) -> None:
    manifests = render("cert-manager")
    for secret in of_kind(manifests, "Secret"):
        assert not any(entry.endswith((".crt", ".key")) for entry in secret["data"]), secret["metadata"]["name"]
    for role in of_kind(manifests, "Role", "ClusterRole"):
        assert not any("secrets" in rule["resources"] for rule in role.get("rules", ())), role["metadata"]["name"]
    arguments = named(manifests, "Deployment", "streamserve-operator")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert not any(argument.startswith("--renew") for argument in arguments)
    assert "--tls-secret=streamserve-tls" in arguments


def test_every_pod_mounts_the_files_that_cert_manager_fills(render: Render) -> None:
    manifests = render("cert-manager")
    issued = {(made["metadata"]["namespace"], made["spec"]["secretName"]) for made in of_kind(manifests, "Certificate")}
    assert issued == ISSUED.keys()
    for name, spec in pod_specs(manifests).items():
        secrets = {each["name"]: each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each}
        assert ("serving", secrets["tls"]) in issued, name


def test_with_secrets_of_ones_own_cert_manager_still_makes_the_certificates(render: Render) -> None:
    issuer = ("--set", "tls.certManager.issuer.name=ours")
    made = render("own-secrets", *issuer)
    assert not of_kind(made, "Secret")
    issued = {each["spec"]["secretName"] for each in of_kind(made, "Certificate")}
    assert issued == {"my-operator-tls", "my-pairs-tls", "my-pairs-client-tls"}
