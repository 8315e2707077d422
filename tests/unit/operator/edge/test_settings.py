"""What the operator's command line takes, and what it says to what it does not."""

from __future__ import annotations

import pytest

from streamserve.operator.edge import settings
from streamserve.runtime.errors import SetupError

IMAGES = ("--worker-image", "w:1", "--router-image", "r:1")


def test_the_least_that_is_needed_outside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.REDIS_VARIABLE, raising=False)
    found = settings.parse([*IMAGES, "--namespace", "llm", "--namespace", "llm", "--namespace", "chat"])
    assert found.namespaces == ("llm", "chat")
    assert (found.lease.namespace, found.lease.name) == ("llm", "streamserve-operator")
    assert (found.site.worker_image, found.site.secret, found.redis_url) == ("w:1", "streamserve", None)


def test_redis_is_told_by_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REDIS_VARIABLE, "redis://:secret@redis:6379/0")
    assert settings.parse([*IMAGES, "--namespace", "llm"]).redis_url == "redis://:secret@redis:6379/0"
    assert "--redis-url" not in settings.parser().format_help()


def test_a_redis_url_that_is_none_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REDIS_VARIABLE, "http://:secret@redis:6379/0")
    with pytest.raises(SetupError, match="is no Redis URL") as refused:
        settings.parse([*IMAGES, "--namespace", "llm"])
    assert "secret" not in str(refused.value)


def test_two_processes_have_two_identities() -> None:
    one, two = (settings.parse([*IMAGES, "--namespace", "llm"]).lease.identity for _ in range(2))
    assert one != two


def test_the_leader_stops_writing_before_its_lease_ends_whatever_its_length() -> None:
    for seconds in ("1", "15", "3600"):
        lease = settings.parse([*IMAGES, "--namespace", "llm", "--lease-seconds", seconds]).lease
        assert lease.retry_seconds < lease.renew_deadline_seconds < lease.duration_seconds == float(seconds)


def test_the_name_in_the_certificates_is_for_the_operator_and_for_the_routers_that_it_makes() -> None:
    files = ("--tls", "--tls-ca", "ca", "--tls-certificate", "crt", "--tls-key", "key")
    found = settings.parse([*IMAGES, "--namespace", "llm", *files, "--tls-peer-name", "pod.streamserve"])
    assert found.tls is not None
    assert (found.tls.peer_name, found.site.tls_peer_name) == ("pod.streamserve", "pod.streamserve")


def test_certificates_are_renewed_where_it_is_told_who_signs_and_which() -> None:
    where = ("--namespace", "llm", "--lease-namespace", "serving")
    leaves = ("--renew=serving/streamserve-operator", "--renew=llm/streamserve", "--renew=llm/streamserve")
    found = settings.parse([*IMAGES, *where, "--renew-authority=streamserve-ca", *leaves]).renewal
    assert found is not None
    assert found.authority == ("serving", "streamserve-ca")
    assert found.leaves == (("serving", "streamserve-operator"), ("llm", "streamserve"))


def test_without_an_authority_nothing_is_renewed() -> None:
    assert settings.parse([*IMAGES, "--namespace", "llm"]).renewal is None


RENEW = ("--namespace", "llm", "--renew-authority")
BAD = {
    "every namespace, and nowhere for the Lease": ((), "--lease-namespace"),
    "a namespace that none can be called": (("--namespace", "LLM"), "lower-case"),
    "TLS without an identity": (("--namespace", "llm", "--tls"), "--tls-certificate"),
    "half an identity": (("--namespace", "llm", "--tls-ca", "ca.crt"), "three files"),
    "a metrics address without a port": (("--namespace", "llm", "--metrics", "localhost"), "host:port"),
    "certificates to renew and nobody to sign them": (("--namespace", "llm", "--renew", "llm/a"), "--renew-authority"),
    "somebody to sign and no certificate": ((*RENEW, "ca"), "both"),
    "a Secret without its namespace": ((*RENEW, "ca", "--renew", "a"), "NAMESPACE/SECRET"),
    "a Secret in a namespace that none can be called": ((*RENEW, "ca", "--renew", "LLM/a"), "NAMESPACE/SECRET"),
    "a Secret that none can be called": ((*RENEW, "ca", "--renew", "llm/a_b"), "NAMESPACE/SECRET"),
    "a path in the place of the authority": ((*RENEW, "llm/ca", "--renew", "llm/a"), "no Secret's name"),
    "the authority among what it signs": ((*RENEW, "ca", "--renew", "llm/ca"), "leave it out"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_refused_with_what_to_give(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        settings.parse([*IMAGES, *arguments])


def test_the_help_names_every_entry_of_the_secret() -> None:
    help_ = settings.parser().format_help()
    for entry in ("worker-redis-url", "router-redis-url", "ca.crt", "tls.key", settings.REDIS_VARIABLE):
        assert entry in help_


def test_the_files_of_the_identity_lie_in_the_same_secret_unless_another_is_named() -> None:
    assert settings.parse([*IMAGES, "--namespace", "llm"]).site.tls_secret == ""
    assert settings.parse([*IMAGES, "--namespace", "llm", "--tls-secret", "own"]).site.tls_secret == "own"
