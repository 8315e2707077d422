"""Certificates as rendered: who signed them, for what names, for how long."""

from __future__ import annotations

import base64
import dataclasses
import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.chart.conftest import Render, named, of_kind, pod_specs

from streamserve.runtime import grpc as transport
from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.tls import TlsFiles

NAMES = {
    "streamserve-operator": {"streamserve-operator.serving.svc", "localhost"},
    "streamserve": {"pod.streamserve", "*.serving.svc", "*.serving.svc.cluster.local", "localhost"},
    "streamserve-client": {"client.streamserve"},
    "streamserve-redis": {
        "streamserve-redis.serving.svc",
        "streamserve-redis.serving.svc.cluster.local",
        "streamserve-redis",
        "localhost",
    },
}


def certificate(secret: dict[str, Any], entry: str = "tls.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(secret["data"][entry]))


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_is_of_the_one_authority_and_for_its_own_names(render: Render, name: str) -> None:
    manifests = render("default")
    authority = certificate(named(manifests, "Secret", "streamserve-ca"))
    secret = named(manifests, "Secret", name)
    found = certificate(secret)
    found.verify_directly_issued_by(authority)
    assert certificate(secret, "ca.crt") == authority
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == NAMES[name]
    usage = set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    key = load_pem_private_key(base64.b64decode(secret["data"]["tls.key"]), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == found.public_key()


def test_a_certificate_lives_as_long_as_the_values_say(render: Render) -> None:
    manifests = render("default", "--set", "tls.certificateDays=30")
    days = {
        name: round((found.not_valid_after_utc - found.not_valid_before_utc) / datetime.timedelta(days=1))
        for name in (*NAMES, "streamserve-ca")
        for found in [certificate(named(manifests, "Secret", name))]
    }
    assert days == dict.fromkeys(NAMES, 30) | {"streamserve-redis": 3650, "streamserve-ca": 3650}


def test_the_authoritys_key_is_in_one_secret_that_no_pod_mounts(render: Render) -> None:
    manifests = render("default")
    key = named(manifests, "Secret", "streamserve-ca")["data"]["tls.key"]
    holders = [made["metadata"]["name"] for made in of_kind(manifests, "Secret") if key in made["data"].values()]
    assert holders == ["streamserve-ca"]
    for spec in pod_specs(manifests).values():
        given = [spec["volumes"], *(container.get("env") for container in spec["containers"])]
        assert "streamserve-ca" not in str(given)


def test_without_tls_there_are_no_certificates(render: Render) -> None:
    for secret in of_kind(render("plain"), "Secret"):
        assert not any(entry.endswith((".crt", ".key")) for entry in secret["data"])


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("pod.streamserve", True),
        ("llama-router.serving.svc", True),
        ("llama-router.serving.svc.cluster.local", True),
        ("llama-router.elsewhere.svc", False),
        ("streamserve-redis.serving.svc", True),
        ("operator", False),
    ],
)
async def test_grpc_takes_a_pod_for_these_names(render: Render, tmp_path: Path, name: str, taken: bool) -> None:
    """A server with the files of a pod, a client with those for clients."""
    manifests = render("default")
    server = GrpcServer("127.0.0.1:0", services=(), tls=mounted(named(manifests, "Secret", "streamserve"), tmp_path))
    address = await server.start()
    client = mounted(named(manifests, "Secret", "streamserve-client"), tmp_path)
    try:
        async with transport.channel(address, dataclasses.replace(client, peer_name=name)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                answered = True
            except grpc.aio.AioRpcError:
                answered = False
    finally:
        await server.stop(0)
    assert answered is taken


def mounted(secret: dict[str, Any], folder: Path) -> TlsFiles:
    place = folder / secret["metadata"]["name"]
    place.mkdir()
    for entry in ("ca.crt", "tls.crt", "tls.key"):
        (place / entry).write_bytes(base64.b64decode(secret["data"][entry]))
    return TlsFiles(place / "ca.crt", place / "tls.crt", place / "tls.key")
