"""Which live objects need a write: only those that lack something of ours."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.operator.compare import difference, to_replace

SAME: dict[str, tuple[Any, Any]] = {
    "what the server fills in": ({"spec": {"a": 1}}, {"spec": {"a": 1, "b": 2}, "status": {}}),
    "an empty value that the server dropped": ({"spec": {"medium": "", "list": [], "on": False}}, {"spec": {}}),
    "a quantity in its canonical form": ({"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}),
    "binary and plain bytes": ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1073741824"}}),
    "entries of others in a list of named ones": ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"name": "A"}]}),
    "defaults inside a list": ({"ports": [{"port": 1}]}, {"ports": [{"port": 1, "protocol": "TCP"}]}),
}

DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "another value": ({"spec": {"replicas": 2}}, {"spec": {"replicas": 3}}, "spec.replicas"),
    "a missing field": ({"metadata": {"labels": {"a": "1"}}}, {"metadata": {}}, "metadata.labels"),
    "another quantity": ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}, "limits.cpu"),
    "the same number outside of quantities": ({"image": "1000m"}, {"image": "1"}, "image"),
    "a named entry that is gone": ({"env": [{"name": "A", "value": "1"}]}, {"env": []}, "env.A"),
    "a list that somebody added to": ({"ports": [1]}, {"ports": [1, 2]}, "ports"),
    "a label that somebody added to a selector": (
        {"selector": {"a": "1"}},
        {"selector": {"a": "1", "b": "2"}},
        "selector",
    ),
    "a number for a truth": ({"spec": {"a": {"b": [1]}}}, {"spec": {"a": {"b": [2]}}}, "spec.a.b.0"),
}


@pytest.mark.parametrize("name", SAME)
def test_no_write_for(name: str) -> None:
    assert difference(*SAME[name]) == ""


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_write_for(name: str) -> None:
    ours, live, want = DIFFERENT[name]
    assert difference(ours, live) == want


def test_ports_that_somebody_edited_are_replaced_wherever_they_are_and_nothing_beside_them() -> None:
    port = {"name": "grpc", "port": 1}
    container = {"name": "router", "image": "i", "ports": [port]}
    ours = {"spec": {"ports": [port], "type": "ClusterIP", "template": {"containers": [container]}}}
    theirs = {"spec": {**ours["spec"], "type": "NodePort", "ports": [{"name": "grpc", "port": 2}]}}
    replaced = [{"$patch": "replace"}, port]
    assert to_replace(ours, ours) is None
    assert to_replace(ours, theirs) == {
        "spec": {"ports": replaced, "template": {"containers": [{"name": "router", "ports": replaced}]}}
    }
