"""The Prometheus of the story: what it is to scrape, and what it answers."""

from __future__ import annotations

import json
import urllib.parse

from tests.cluster.support import NAMESPACE, Body, Cluster


def targets(cluster: Cluster) -> list[Body]:
    """Every pod of ours that has metrics."""
    found = []
    for pod in cluster.get("pods", "--selector=app.kubernetes.io/part-of=streamserve")["items"]:
        ports = [port["name"] for each in pod["spec"]["containers"] for port in each.get("ports", ())]
        if "metrics" in ports:
            metadata = pod["metadata"]
            labels = {name: value for name, value in metadata["labels"].items() if name.startswith("streamserve.io/")}
            labels = {name.replace(".", "_").replace("/", "_"): value for name, value in labels.items()}
            labels |= {"namespace": NAMESPACE, "pod": metadata["name"]}
            found.append({"targets": [f"{pod['status']['podIP']}:9090"], "labels": labels})
    assert len(found) == 2 + 2 + 4, "operators, routers, two lanes"
    return found


def asked(cluster: Cluster, query: str, label: str) -> set[str]:
    """The label's values in the answer."""
    answer = ask(cluster, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    return {str(series["metric"].get(label, "")) for series in answer["result"]}


def ask(cluster: Cluster, path: str) -> Body:
    raw = f"/api/v1/namespaces/{NAMESPACE}/pods/prometheus:9090/proxy{path}"
    data: Body = json.loads(cluster.kubectl("get", "--raw", raw))["data"]
    return data
