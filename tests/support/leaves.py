"""An authority in memory and certificates of it for any time, as the chart makes them; and as Secrets, and as files.

    signer = Signer(ends=…)
    pem = signer.leaf(begins=…, life=…)                      # (certificate, key)
    secret(pem, "llm", "streamserve")                        # a manifest, with the chart's annotations
    mounted = Mounted(folder, signer, pem); mounted.files    # as a kubelet mounts that Secret; mounted.replace(pem)

Times are given and not looked up, so a certificate of any age can be had.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from streamserve.operator.certificates import Authority
from streamserve.runtime.tls import TlsFiles

Pem = tuple[bytes, bytes]
SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = timedelta(days=1)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NAMES_DIGEST = "0123456789abcdef"


class Signer:
    """As the chart's: `key` is elliptic unless another is given."""

    def __init__(
        self,
        name: str = "streamserve.serving",
        *,
        begins: datetime = BEGAN,
        ends: datetime = BEGAN + 3_650 * DAY,
        key: SigningKey | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self.key, SHA256())
        )

    @property
    def authority(self) -> Authority:
        return Authority(self.certificate, self.key)

    @property
    def pem(self) -> Pem:
        return self.certificate.public_bytes(Encoding.PEM), pem_of(self.key)

    def leaf(
        self,
        *,
        begins: datetime = BEGAN,
        life: timedelta = 90 * DAY,
        name: str = "llm.streamserve",
        dns: Sequence[str] = ("pod.streamserve", "localhost"),
        addresses: Sequence[str] = ("127.0.0.1",),
        is_authority: bool = False,
        more: Sequence[x509.ExtensionType] = (),
    ) -> Pem:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [*(x509.DNSName(each) for each in dns), *(x509.IPAddress(ipaddress.ip_address(a)) for a in addresses)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + life)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM), pem_of(key)


def pem_of(key: SigningKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def secret(pem: Pem, namespace: str, name: str, **more: bytes) -> dict[str, Any]:
    """The Secret that holds it, with `more` entries beside."""
    ends = x509.load_pem_x509_certificate(pem[0]).not_valid_after_utc if pem[0] else BEGAN
    data = {"tls.crt": pem[0], "tls.key": pem[1], **more}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {
                "streamserve.io/certificate-ends": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
                "streamserve.io/certificate-names": NAMES_DIGEST,
            },
        },
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def entry(manifest: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(manifest["data"][name])


class Mounted:
    """A Secret's files in a pod: links through `..data`, which the kubelet turns to a new folder in one step."""

    def __init__(self, folder: Path, signer: Signer, pem: Pem) -> None:
        self._folder = folder
        self._signer = signer
        self._turn = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.replace(pem)
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)
        self.files = TlsFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")

    def replace(self, pem: Pem) -> None:
        self._turn += 1
        place = self._folder / f"..{self._turn}"
        place.mkdir()
        for name, content in (("ca.crt", self._signer.pem[0]), ("tls.crt", pem[0]), ("tls.key", pem[1])):
            (place / name).write_bytes(content)
        (self._folder / "..new").symlink_to(place.name)
        os.replace(self._folder / "..new", self._folder / "..data")


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not signs,
        key_cert_sign=signs,
        crl_sign=False,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
