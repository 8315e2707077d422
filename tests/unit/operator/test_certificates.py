"""When a certificate is renewed, when it is left alone, and that the next one is as good as the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.leaves import BEGAN, DAY, Pem, Signer, pem_of

from streamserve.operator.certificates import (
    CertificateError,
    Decision,
    Keep,
    Reason,
    Refuse,
    Renew,
    decide,
    ends_at,
    read_authority,
    successor,
)

SECOND = timedelta(seconds=1)
OURS = Signer()
OTHERS = Signer()
"""Of the same name, as the authority of a release that was installed anew."""
SHORT_LIVED = Signer(ends=BEGAN + 90 * DAY)
ENDS_FIRST = Signer(ends=BEGAN + 30 * DAY)
AN_HOUR_OLDER = Signer(ends=BEGAN + 90 * DAY + 3_600 * SECOND)
LEAF, LAST_BUT_ONE, OUTLIVES = OURS.leaf(), AN_HOUR_OLDER.leaf(), ENDS_FIRST.leaf()


def read(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


@dataclass(frozen=True)
class Case:
    at: datetime
    want: Decision
    leaf: bytes = field(default=LEAF[0], repr=False)
    signer: Signer = OURS


DUE = BEGAN + 60 * DAY
CASES = {
    "a new certificate is kept until two thirds of its life": Case(BEGAN, Keep(DUE)),
    "one whose life has not begun is kept": Case(BEGAN - DAY, Keep(DUE)),
    "a second before two thirds it is kept": Case(DUE - SECOND, Keep(DUE)),
    "at two thirds it is renewed": Case(DUE, Renew(Reason.TWO_THIRDS)),
    "in its last second it is renewed": Case(BEGAN + 90 * DAY, Renew(Reason.TWO_THIRDS)),
    "one that has expired is renewed, and said to have": Case(BEGAN + 91 * DAY, Renew(Reason.EXPIRED)),
    "a life of a minute is a life": Case(BEGAN + 40 * SECOND, Renew(Reason.TWO_THIRDS), OURS.leaf(life=60 * SECOND)[0]),
    "one of another authority is not touched": Case(DUE, Refuse(Reason.FOREIGN), OTHERS.leaf()[0]),
    "nor is it told to be kept": Case(BEGAN, Refuse(Reason.FOREIGN), OTHERS.leaf()[0]),
    "an authority is not renewed, though it signed itself": Case(DUE, Refuse(Reason.AUTHORITY), OURS.pem[0]),
    "an authority below ours is not renewed": Case(DUE, Refuse(Reason.AUTHORITY), OURS.leaf(is_authority=True)[0]),
    "what is no certificate is not touched": Case(DUE, Refuse(Reason.UNREADABLE), b"-----BEGIN NONSENSE-----"),
    "what is empty is not touched": Case(DUE, Refuse(Reason.UNREADABLE), b""),
    "one that ends with its authority is not renewed to the same end": Case(
        DUE, Refuse(Reason.AUTHORITY_ENDS), SHORT_LIVED.leaf()[0], SHORT_LIVED
    ),
    "before that is due nobody need know": Case(BEGAN, Keep(DUE), SHORT_LIVED.leaf()[0], SHORT_LIVED),
    "an hour more is renewed for": Case(DUE, Renew(Reason.TWO_THIRDS), LAST_BUT_ONE[0], AN_HOUR_OLDER),
    "one that outlives its authority is good for as long as that, at two thirds of which people have to look": Case(
        BEGAN + 20 * DAY, Refuse(Reason.AUTHORITY_ENDS), OUTLIVES[0], ENDS_FIRST
    ),
    "before two thirds of that nobody need know": Case(
        BEGAN + 20 * DAY - SECOND, Keep(BEGAN + 20 * DAY), OUTLIVES[0], ENDS_FIRST
    ),
    "once the authority has ended it is good for nothing": Case(
        BEGAN + 31 * DAY, Refuse(Reason.AUTHORITY_ENDS), OUTLIVES[0], ENDS_FIRST
    ),
    "an authority that has ended signs nothing": Case(
        BEGAN + 91 * DAY, Refuse(Reason.AUTHORITY_ENDS), LAST_BUT_ONE[0], AN_HOUR_OLDER
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_done_about_it(case: Case) -> None:
    assert decide(case.leaf, case.signer.authority, case.at) == case.want


def test_every_refusal_says_what_to_do() -> None:
    for case in CASES.values():
        if isinstance(case.want, Refuse):
            assert any(word in case.want.message for word in ("delete", "leave it out"))


AT = st.integers(0, 200 * 86_400).map(lambda seconds: BEGAN + seconds * SECOND)
LIFE = st.integers(3, 100 * 86_400).map(lambda seconds: seconds * SECOND)


@settings(deadline=None, max_examples=60)
@given(first=AT, later=LIFE)
def test_what_is_due_stays_due(first: datetime, later: timedelta) -> None:
    """Until somebody renews it, or its authority has ended and nobody can."""
    for leaf, signer in ((LEAF[0], OURS), (LAST_BUT_ONE[0], AN_HOUR_OLDER), (OUTLIVES[0], ENDS_FIRST)):
        before, after = (decide(leaf, signer.authority, at) for at in (first, first + later))
        if not isinstance(before, Keep):
            assert not isinstance(after, Keep)
        if before == Refuse(Reason.AUTHORITY_ENDS):
            assert after == before


DNS = st.lists(st.from_regex(r"(\*\.)?[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,6}){0,3}", fullmatch=True), max_size=4)
ADDRESSES = st.lists(st.ip_addresses().map(str), max_size=3)


@settings(deadline=None, max_examples=60)
@given(dns=DNS, addresses=ADDRESSES, life=LIFE, waited=st.fractions(0, 3), left=LIFE)
def test_the_next_one_is_of_the_authority_for_the_same_names_and_does_not_outlive_it(
    dns: list[str], addresses: list[str], life: timedelta, waited: float, left: timedelta
) -> None:
    signer = Signer(ends=BEGAN + life + left)
    old, _ = signer.leaf(life=life, dns=dns, addresses=addresses)
    now = BEGAN + timedelta(seconds=float(waited) * life.total_seconds())
    if not isinstance(decide(old, signer.authority, now), Renew):
        return
    made = successor(old, signer.authority, now)
    before, after = read(old), read(made.certificate)
    after.verify_directly_issued_by(signer.certificate)
    assert after.subject == before.subject
    assert same_but_for_its_key(after) == same_but_for_its_key(before)
    assert load_pem_private_key(made.key, None).public_key() == after.public_key()
    assert after.public_key() != before.public_key()
    assert after.serial_number != before.serial_number
    assert after.not_valid_before_utc <= now < made.ends
    assert made.ends == after.not_valid_after_utc <= signer.certificate.not_valid_after_utc
    assert made.ends > before.not_valid_after_utc
    assert after.not_valid_after_utc - after.not_valid_before_utc <= life
    if made.ends < signer.certificate.not_valid_after_utc:
        assert after.not_valid_after_utc - after.not_valid_before_utc == life
    assert not isinstance(decide(made.certificate, signer.authority, now), Renew), "it would never rest"


def same_but_for_its_key(certificate: x509.Certificate) -> list[tuple[bool, x509.ExtensionType]]:
    return [
        (each.critical, each.value)
        for each in certificate.extensions
        if not isinstance(each.value, x509.SubjectKeyIdentifier)
    ]


def test_the_next_ones_key_identifier_is_of_its_own_key() -> None:
    after = read(successor(LEAF[0], OURS.authority, DUE).certificate)
    found = after.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert found == x509.SubjectKeyIdentifier.from_public_key(after.public_key())


def test_an_extension_that_nobody_here_knows_is_kept() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    after = read(successor(OURS.leaf(more=[unknown])[0], OURS.authority, DUE).certificate)
    assert unknown in [each.value for each in after.extensions]


def test_the_last_leaf_of_an_authority_ends_with_it_and_is_then_left_alone() -> None:
    signer = Signer(ends=BEGAN + 400 * DAY)
    (pem, _), now, renewals = signer.leaf(), BEGAN, 0
    while not isinstance(decision := decide(pem, signer.authority, now), Refuse):
        if isinstance(decision, Keep):
            now = decision.until
            continue
        pem, renewals = successor(pem, signer.authority, now).certificate, renewals + 1
    assert decision.reason is Reason.AUTHORITY_ENDS
    assert ends_at(pem) == signer.certificate.not_valid_after_utc
    assert renewals == 6


def test_an_authority_of_rsa_signs_as_well() -> None:
    signer = Signer(key=rsa.generate_private_key(65_537, 2_048))
    authority = read_authority(*signer.pem)
    made = successor(signer.leaf()[0], authority, DUE)
    read(made.certificate).verify_directly_issued_by(signer.certificate)


BAD: dict[str, tuple[Pem, str]] = {
    "nothing": ((b"", b""), "cannot be read"),
    "no key": ((OURS.pem[0], b""), "cannot be read"),
    "another's key": ((OURS.pem[0], pem_of(ec.generate_private_key(ec.SECP256R1()))), "not the key of"),
}


@pytest.mark.parametrize(("pem", "says"), BAD.values(), ids=BAD)
def test_an_authority_that_cannot_sign_is_refused_without_its_key_in_the_words(pem: Pem, says: str) -> None:
    with pytest.raises(CertificateError, match=says) as refused:
        read_authority(*pem)
    assert "PRIVATE" not in str(refused.value)


def test_no_key_is_in_what_is_printed_of_them() -> None:
    assert "key" not in repr(OURS.authority).lower()
    assert "PRIVATE" not in repr(successor(LEAF[0], OURS.authority, DUE))
