"""The cluster's certificates: an authority for its programs, and one for the front proxy, as Kubernetes wants it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from layout import API_PORT, FOLDER

DAYS = 30
PKI = FOLDER / "pki"


def authority(name: str, common_name: str) -> None:
    """pki/NAME.crt and .key, unless they are there."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), _name(common_name)
    builder = _builder(subject, subject, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    _write(name, builder.add_extension(usage, True).sign(key, hashes.SHA256()), key)


def leaf(issuer: str, name: str, common_name: str, organization: str = "", names: Sequence[str] = ()) -> None:
    """A certificate for servers and clients alike; `names` are addresses and DNS names."""
    signer = x509.load_pem_x509_certificate((PKI / f"{issuer}.crt").read_bytes())
    signing = serialization.load_pem_private_key((PKI / f"{issuer}.key").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common_name, organization), signer.subject, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(usages, False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(each) for each in names]), False)
    _write(name, builder.sign(signing, hashes.SHA256()), key)


def service_accounts() -> None:
    """pki/sa.key, which signs the tokens of ServiceAccounts, and pki/sa.pub."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _private("sa", key)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (PKI / "sa.pub").write_bytes(public)


def kubeconfig(path: Path, server: str, certificate: str) -> Path:
    """One that verifies the server and shows pki/CERTIFICATE."""
    path.write_text(
        f"""apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://{server}:{API_PORT}", certificate-authority: "{PKI}/ca.crt"}}}}]
users: [{{name: u, user: {{client-certificate: "{PKI}/{certificate}.crt", client-key: "{PKI}/{certificate}.key"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""
    )
    path.chmod(0o600)
    return path


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=DAYS))


def _name(common_name: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    _private(name, key)
    (PKI / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _private(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    PKI.mkdir(parents=True, exist_ok=True)
    path = PKI / f"{name}.key"
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
