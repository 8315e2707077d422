"""What an uninstall may leave: the CRDs. Looked for in both namespaces, and among what is in no namespace."""

from __future__ import annotations

import json

from tests.cluster.support import ENGINES, NAMESPACE, Body, Cluster

KINDS = ",".join(
    [
        *("pods", "services", "deployments", "replicasets", "configmaps", "secrets", "serviceaccounts"),
        *("roles", "rolebindings", "leases", "networkpolicies", "poddisruptionbudgets", "endpointslices"),
        *("horizontalpodautoscalers", "streampairs", "streampairscalers"),
    ]
)
KINDS_IN_NO_NAMESPACE = ",".join(
    [
        *("clusterroles", "clusterrolebindings", "apiservices", "priorityclasses"),
        *("validatingwebhookconfigurations", "mutatingwebhookconfigurations"),
    ]
)


def until_nothing_is_left_but_the_crds(cluster: Cluster) -> None:
    cluster.wait(lambda: not _left(cluster), 120, "nothing is left", lambda: ", ".join(_left(cluster)))
    crds = cluster.get("customresourcedefinitions")["items"]
    names = {each["metadata"]["name"] for each in crds if each["metadata"]["name"].endswith("streamserve.io")}
    assert names == {"streampairs.streamserve.io", "streampairscalers.streamserve.io"}


def _left(cluster: Cluster) -> list[str]:
    """What is in the namespaces and not Kubernetes' own, and what of ours is in none."""
    inside = [each for place in (NAMESPACE, ENGINES) for each in cluster.get(KINDS, f"--namespace={place}")["items"]]
    found = [each for each in inside if each["metadata"]["name"] not in ("default", "kube-root-ca.crt")]
    found += [each for each in cluster.get(KINDS_IN_NO_NAMESPACE)["items"] if _is_ours(each)]
    return [f"{each['kind']} {each['metadata']['name']}" for each in found]


def _is_ours(body: Body) -> bool:
    """The API server makes an APIService of each CRD, which leads to no Service."""
    of_a_crd = body["kind"] == "APIService" and not body["spec"].get("service")
    return not of_a_crd and "streamserve" in json.dumps(body["metadata"])
