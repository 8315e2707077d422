"""What is accepted can be made: an API server takes the pods of every good StreamPair of the table.

And no rule is stricter than it has to be: those that speak for the API server are broken by no pod that it takes.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.api_server import ApiServer
from tests.support.stream_pairs import TABLE, document, merged

from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import StreamPair
from streamserve.operator.builders import router, worker_pods
from streamserve.operator.site import Site

PODS = "/api/v1/namespaces/default/pods?dryRun=All"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments?dryRun=All"
SITE = Site(worker_image="streamserve/worker:0.1.0", router_image="streamserve/router:0.1.0")
IDENTITY = {"uid": "5f0c7a52-0000-4000-8000-000000000001", "generation": 1}
NOT_OF_THIS_SERVER = "disallowed by cluster policy"
"""Privileged containers are: a flag of the server, and no matter of the pod."""

SPEAK_FOR_KUBERNETES = {
    "env-value-or-source",
    "env-one-source",
    "volume-names-unique",
    "mount-of-a-volume",
    "mount-paths-unique",
    "mount-not-over-weights",
    "weights-path-not-ours",
    "weights-apart",
    "sub-path-inside",
    "host-path-not-upwards",
    "request-at-most-the-limit",
    "device-request-is-its-limit",
    "huge-pages-beside-memory",
    "toleration-has-a-key",
    "toleration-value-is-compared",
    "toleration-seconds-of-an-eviction",
    "spreads-unique",
    "spread-domains-where-pods-wait",
    "spread-labels-join-a-selector",
    "spread-labels-selected-once",
    "divisor-of-its-resource",
    "selector-values-where-compared",
    "privileged-may-escalate",
    "localhost-profile-with-its-type",
}


def refusals(server: ApiServer, case: dict[str, Any]) -> list[str]:
    """What the API server says to the pods and the Deployment that the operator would make."""
    return [
        f"{field}: {message}"
        for path, made in _made(case)
        for field, message in server.call("POST", path, made).causes
        if NOT_OF_THIS_SERVER not in message
    ]


def _made(case: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    body = merged(document(case), {"metadata": IDENTITY})
    pair = StreamPair.model_validate(body, by_alias=True, by_name=False)
    for role in ("prefill", "decode"):
        yield PODS, worker_pods.pod(pair, SITE, 0, Slot(role, 0), "0123456789")
    yield DEPLOYMENTS, router.deployment(pair, SITE)


@pytest.mark.parametrize("name", TABLE["good"])
def test_the_pods_of_a_good_pair_can_be_made(server: ApiServer, name: str) -> None:
    assert refusals(server, TABLE["good"][name]) == []


@pytest.mark.parametrize("name", [name for name, case in TABLE["bad"].items() if case["rule"] in SPEAK_FOR_KUBERNETES])
def test_a_pod_of_a_pair_that_such_a_rule_refuses_can_not_be_made(server: ApiServer, name: str) -> None:
    assert refusals(server, TABLE["bad"][name]) != []
