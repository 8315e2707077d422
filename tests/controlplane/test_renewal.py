"""The operator's process renews a certificate of 60 s in a Secret of a real API server, and touches nothing else."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.support.leaves import NAMES_DIGEST, Pem, Signer, entry, secret
from tests.support.operator_bench import MERGE, OperatorBench
from tests.support.processes import wait_until

from streamserve.operator import certificates
from streamserve.operator.edge import renewal
from streamserve.operator.edge.resources import SECRET

SECOND = timedelta(seconds=1)
LIFE = 60 * SECOND
QUIET_SECONDS = 8.0
METRIC = "streamserve_operator_certificate"


def test_a_leaf_is_renewed_once_at_two_thirds_of_its_life_and_nothing_else_is_written(bench: OperatorBench) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    ours, others = (Signer(begins=now - 3_600 * SECOND, ends=now + 86_400 * SECOND) for _ in range(2))
    # 25 s old, so that the test need not wait for all of the 40.
    begins = now - 25 * SECOND
    old = ours.leaf(begins=begins, life=LIFE)
    plant(bench, "authority", ours.pem)
    plant(bench, "leaf", old, **{"worker-redis-url": b"redis://kept"})
    plant(bench, "young", ours.leaf(begins=now, life=86_400 * SECOND))
    plant(bench, "foreign", others.leaf(begins=begins, life=LIFE))
    before = {name: read(bench, name) for name in ("authority", "leaf", "young", "foreign")}

    renewed = [f"--renew={bench.namespace}/{name}" for name in ("leaf", "young", "foreign")]
    operator = bench.start("one", "--renew-authority=authority", *renewed)
    bench.until_leads(operator)
    stale = before["leaf"]
    wait_until(lambda: read(bench, "leaf") != stale, seconds=60, what="it is renewed", every_seconds=0.1)
    seen_at = datetime.now(UTC)

    leaf = read(bench, "leaf")
    was, made = (x509.load_pem_x509_certificate(pem) for pem in (old[0], entry(leaf, "tls.crt")))
    made.verify_directly_issued_by(ours.certificate)
    assert begins + 40 * SECOND <= made.not_valid_before_utc <= begins + 45 * SECOND
    assert made.not_valid_before_utc <= seen_at
    assert made.not_valid_after_utc == made.not_valid_before_utc + LIFE
    assert made.subject == was.subject
    assert names(made) == names(was) == {"pod.streamserve", "localhost"}
    assert load_pem_private_key(entry(leaf, "tls.key"), None).public_key() == made.public_key()
    assert leaf["metadata"]["annotations"] == {
        "streamserve.io/certificate-ends": f"{made.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "streamserve.io/certificate-names": NAMES_DIGEST,
    }
    assert entry(leaf, "worker-redis-url") == b"redis://kept"

    time.sleep(QUIET_SECONDS)
    after = {name: read(bench, name) for name in before}
    assert after == {**before, "leaf": leaf}, "once, and nothing but the leaf"
    metrics = bench.metrics(operator)
    assert metrics[f'{METRIC}_renewals_total{{outcome="ok"}}'] == 1.0
    ends = metrics[f'{METRIC}_expiry_timestamp_seconds{{secret="{bench.namespace}/leaf"}}']
    assert ends == made.not_valid_after_utc.timestamp()
    assert bench.writes(operator) == 1.0

    assert operator.log.count("another authority signed it") == 1
    secrets = [value for body in after.values() for value in (body["data"]["tls.key"], body["data"]["tls.crt"])]
    assert not any(value in operator.log for value in [*secrets, "PRIVATE KEY"])


def test_a_write_of_what_was_read_before_another_wrote_is_refused(bench: OperatorBench) -> None:
    """What keeps `helm upgrade` and the operator from overwriting each other is the API server's to keep."""
    now = datetime.now(UTC).replace(microsecond=0)
    signer = Signer(begins=now - 3_600 * SECOND, ends=now + 86_400 * SECOND)
    old = signer.leaf(begins=now - LIFE, life=LIFE)
    plant(bench, "leaf", old)
    seen = read(bench, "leaf")
    patch = renewal.patch(seen, certificates.successor(old[0], signer.authority, now))
    helms = signer.leaf(begins=now)
    theirs = {"data": {"tls.crt": base64.b64encode(helms[0]).decode()}}
    assert bench.call("PATCH", path(bench, "leaf"), theirs, MERGE).ok
    assert bench.call("PATCH", path(bench, "leaf"), patch, MERGE).status == 409
    assert entry(read(bench, "leaf"), "tls.crt") == helms[0]


def plant(bench: OperatorBench, name: str, pem: Pem, **more: bytes) -> None:
    answer = bench.call("POST", SECRET.path(bench.namespace), secret(pem, bench.namespace, name, **more))
    assert answer.ok, answer.body


def read(bench: OperatorBench, name: str) -> dict[str, Any]:
    answer = bench.call("GET", path(bench, name))
    assert answer.ok, answer.body
    return answer.body


def path(bench: OperatorBench, name: str) -> str:
    return SECRET.path(bench.namespace, name)


def names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))
