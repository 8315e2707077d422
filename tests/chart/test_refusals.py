"""Values that are refused, and that the message names the value and says what to do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.chart.conftest import CHART, RunHelm


@dataclass(frozen=True, slots=True)
class Refused:
    """Each of `words` is in what Helm says."""

    arguments: tuple[str, ...]
    words: tuple[str, ...]


CASES = {
    "a key that does not exist": Refused(("--set", "operater.replicas=1"), ("operater", "not allowed")),
    "a nested key that does not exist": Refused(("--set", "redis.embeded.image.tag=7"), ("redis", "embeded")),
    "an image key that does not exist": Refused(("--set", "image.worker.name=x"), ("worker", "name")),
    "a word that is none of the enum": Refused(("--set", "scope=Global"), ("scope", "Namespaced", "Cluster")),
    "a number that is a text": Refused(("--set-string", "operator.replicas=two"), ("operator/replicas", "integer")),
    "no operator at all": Refused(("--set", "operator.replicas=0"), ("operator/replicas", "1")),
    "a namespace that cannot be one": Refused(("--set", "namespaces={Team_A}"), ("namespaces/0", "pattern")),
    "a namespace twice": Refused(("--set", "namespaces={a,a}"), ("namespaces", "equal")),
    "a digest that is none": Refused(("--set", "image.router.digest=abc"), ("image/router/digest", "pattern")),
    "a registry with a scheme": Refused(("--set", "image.registry=https://r"), ("image/registry", "pattern")),
    "a URL that is none of Redis": Refused(
        ("--set", "redis.mode=External", "--set", "redis.external.workerUrl=http://u:p@h"),
        ("redis/external/workerUrl", "pattern"),
    ),
    "an external Redis without URLs": Refused(
        ("--set", "redis.mode=External"),
        ("redis.external.operatorUrl is empty", "give redis://", "credentials.create: false"),
    ),
    "an embedded Redis without passwords": Refused(
        ("--set", "credentials.create=false"), ("redis.mode: Embedded needs credentials.create: true",)
    ),
    "an issuer where there is no cert-manager": Refused(
        ("--set", "tls.certManager.issuer.name=ours"),
        ("tls.certManager.issuer.name", "cert-manager.io/v1", "install cert-manager first"),
    ),
    "an issuer without TLS": Refused(
        ("--set", "tls.certManager.issuer.name=ours", "--set", "tls.enabled=false"),
        ("tls.certManager.issuer.name", "tls.enabled is false"),
    ),
    "an issuer of no kind": Refused(
        ("--set", "tls.certManager.issuer.kind="), ("tls/certManager/issuer/kind", "minLength")
    ),
    "an authority that ends before what it signs": Refused(
        ("--set", "tls.authorityDays=30"), ("tls.authorityDays is 30", "tls.certificateDays, 365", "at least as many")
    ),
    "two Secrets of one name": Refused(
        ("--set", "credentials.operatorSecretName=streamserve"), ("credentials.operatorSecretName", "another name")
    ),
    "the operator's Secret by the name of Redis's": Refused(
        ("--set", "credentials.operatorSecretName=streamserve-redis"), ("two Secrets", "streamserve-redis:", "another")
    ),
    "the operator's Secret by the name of the tokens'": Refused(
        ("--set", "credentials.operatorSecretName=streamserve-tokens"), ("two Secrets", "streamserve-tokens:")
    ),
    "the pods' Secret by the name of the authority's": Refused(
        ("--set", "credentials.secretName=streamserve-ca"), ("two Secrets", "streamserve-ca:")
    ),
    "the operator's Secret by the name of one that cert-manager fills": Refused(
        (
            *("--api-versions", "cert-manager.io/v1", "--set", "tls.certManager.issuer.name=ours"),
            *("--set", "credentials.operatorSecretName=streamserve-tls"),
        ),
        ("two Secrets", "streamserve-tls:"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_is_refused_with_words_that_help(helm: RunHelm, case: Refused) -> None:
    done = helm("template", "streamserve", str(CHART), "--namespace", "serving", *case.arguments)
    assert done.returncode != 0
    for word in case.words:
        assert word in done.stderr


OF_OTHERS = {
    "cert-manager's": ("--api-versions", "cert-manager.io/v1", "--set", "tls.certManager.issuer.name=ours"),
    "nobody's": ("--set", "tls.enabled=false"),
    "one's own": ("--set", "credentials.create=false", "--set", "redis.mode=External"),
}


@pytest.mark.parametrize("more", OF_OTHERS.values(), ids=OF_OTHERS)
def test_the_life_of_an_authority_that_the_chart_does_not_make_is_not_judged(
    helm: RunHelm, more: tuple[str, ...]
) -> None:
    given = ("--set", "tls.authorityDays=30", *more)
    assert helm("template", "streamserve", str(CHART), "--namespace", "serving", *given).returncode == 0


def test_names_that_meet_in_no_namespace_are_taken(helm: RunHelm) -> None:
    apart = ("--set", "credentials.secretName=streamserve-redis", "--set", "namespaces={llm}")
    assert helm("template", "streamserve", str(CHART), "--namespace", "serving", *apart).returncode == 0


def test_a_cluster_that_is_too_old_is_refused(helm: RunHelm) -> None:
    done = helm("template", "streamserve", str(CHART), "--kube-version", "1.29.0")
    assert done.returncode != 0
    assert "1.30" in done.stderr
