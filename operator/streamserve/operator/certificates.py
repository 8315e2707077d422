"""Whether a certificate is renewed now, and what the next one is.

    due = not_before + 2/3 · (end − not_before)        end: its own not_after, or its authority's where that is earlier

    before `due`                                     keep it
    from then on, expired or not                     renew it
    unreadable, of another authority, one itself     refuse: people have to look at it, and we do not touch it
    the next one would not end later                 refuse: the authority ends, and with it all that it signed

A third of a life is left to whoever has to take the new one, and to us for trying again. The next certificate has a new
key and lives as long as the one before, so how long that is stays whatever its first maker chose; it never outlives its
authority. Subject, names, usages and every other extension are those of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

SHARE_OF_LIFE: Final = (2, 3)
_UNREADABLE: Final = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType),
)


class CertificateError(Exception):
    """An authority that cannot sign; the message says what to do and holds nothing of a key."""


class Reason(StrEnum):
    TWO_THIRDS = "TwoThirdsOfItsLife"
    EXPIRED = "Expired"
    UNREADABLE = "Unreadable"
    FOREIGN = "OfAnotherAuthority"
    AUTHORITY = "AnAuthority"
    AUTHORITY_ENDS = "AuthorityEnds"


_REMEDIES: Final = {
    Reason.UNREADABLE: "its tls.crt holds no certificate that can be read: delete it, and `helm upgrade` makes another",
    Reason.FOREIGN: "another authority signed it: leave it out of --renew, or delete it, and `helm upgrade` makes one",
    Reason.AUTHORITY: "it is an authority itself: leave it out of --renew",
    Reason.AUTHORITY_ENDS: "its authority ends before a new one would: delete the authority's Secret, `helm upgrade`, "
    "and restart what uses them",
}


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing to do before `until`."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Renew:
    reason: Reason


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: Reason

    @property
    def message(self) -> str:
        """What is wrong and what to do."""
        return _REMEDIES[self.reason]


Decision = Keep | Renew | Refuse


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)

    @property
    def ends(self) -> datetime:
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its key as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    ends: datetime


def read_authority(certificate: bytes, key: bytes) -> Authority:
    """From PEM. Raises CertificateError."""
    try:
        found, private = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, None)
        fits = private.public_key() == found.public_key()
    except _UNREADABLE:
        raise CertificateError("its tls.crt or tls.key cannot be read: restore the Secret from a backup") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateError("its key is neither elliptic nor RSA: take an authority that has such a key")
    if not fits:
        raise CertificateError("its tls.key is not the key of its tls.crt: restore the Secret from a backup")
    return Authority(found, private)


def decide(certificate: bytes, authority: Authority, now: datetime) -> Decision:
    """What to do about a certificate (PEM, the first of a chain) at `now`. Never raises."""
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        is_authority = any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in leaf.extensions)
    except _UNREADABLE:
        return Refuse(Reason.UNREADABLE)
    if is_authority:
        return Refuse(Reason.AUTHORITY)
    if not _signed(leaf, authority):
        return Refuse(Reason.FOREIGN)
    end = min(leaf.not_valid_after_utc, authority.ends)
    due = due_at(leaf, end)
    if now < due:
        return Keep(due)
    if _next_end(leaf, authority, now) <= max(now, end):
        return Refuse(Reason.AUTHORITY_ENDS)
    return Renew(Reason.EXPIRED if now > leaf.not_valid_after_utc else Reason.TWO_THIRDS)


def due_at(leaf: x509.Certificate, end: datetime) -> datetime:
    share, whole = SHARE_OF_LIFE
    return leaf.not_valid_before_utc + (end - leaf.not_valid_before_utc) * share / whole


def ends_at(certificate: bytes) -> datetime | None:
    """Until when a certificate (PEM) is good; None for what is none."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except _UNREADABLE:
        return None


def successor(certificate: bytes, authority: Authority, now: datetime) -> Leaf:
    """The next certificate, for one (PEM) of which `decide` said Renew at `now`. Key and serial number are random."""
    old = x509.load_pem_x509_certificate(certificate)
    key, ends = ec.generate_private_key(ec.SECP256R1()), _next_end(old, authority, now)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.replace(microsecond=0))
        .not_valid_after(ends)
    )
    for extension in old.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(value, critical=extension.critical)
    made = builder.sign(authority.key, SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Leaf(made.public_bytes(Encoding.PEM), private, ends)


def _signed(leaf: x509.Certificate, authority: Authority) -> bool:
    try:
        leaf.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _life(leaf: x509.Certificate) -> timedelta:
    return leaf.not_valid_after_utc - leaf.not_valid_before_utc


def _next_end(leaf: x509.Certificate, authority: Authority, now: datetime) -> datetime:
    """To the second, as certificates are."""
    return min(now.replace(microsecond=0) + _life(leaf), authority.ends)
