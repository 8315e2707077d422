"""The cache: what is news, whom it concerns, and what a complete list says."""

from __future__ import annotations

from typing import Any

from streamserve.operator import naming
from streamserve.operator.edge.store import Change, Store

Body = dict[str, Any]
KEY = ("llm", "llama")


def pod(name: str = "llama-prefill-0-0-0123456789", version: int = 1, uid: str = "u1", **status: Any) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "llm",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {naming.PAIR: "llama"},
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {
            "containers": [{"name": "worker", "image": "i", "args": ["--x"], "env": [{"name": "A"}]}],
            "terminationGracePeriodSeconds": 30,
            "nodeName": "n1",
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort", **status},
    }


def pair(generation: int = 1, version: int = 1, uid: str = "p1") -> Body:
    metadata = {"name": "llama", "namespace": "llm", "uid": uid, "generation": generation}
    return {
        "apiVersion": "streamserve.io/v1alpha1",
        "kind": "StreamPair",
        "metadata": {**metadata, "resourceVersion": str(version)},
        "spec": {"lanes": generation},
    }


def test_an_event_concerns_the_pair_of_the_owner_and_without_one_that_of_the_label() -> None:
    store = Store()
    assert store.put(pod()) == Change(KEY)
    owned = pod("other", uid="u2")
    owned["metadata"]["ownerReferences"] = [{"kind": "StreamPair", "name": "mistral", "controller": True, "uid": "x"}]
    assert store.put(owned) == Change(("llm", "mistral"))
    assert [child["metadata"]["name"] for child in store.children(KEY)] == ["llama-prefill-0-0-0123456789"]


def test_only_what_decisions_read_is_kept_and_only_a_change_of_that_is_news() -> None:
    store = Store()
    store.put(pod())
    kept = store.get(("Pod", "llm", "llama-prefill-0-0-0123456789"))
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert kept["spec"] == {
        "containers": [{"name": "worker", "image": "i", "args": ["--x"]}],
        "terminationGracePeriodSeconds": 30,
        "nodeName": "n1",
    }
    assert store.put(pod(version=2, qosClass="Guaranteed")) is None
    assert store.put(pod(version=3, phase="Running")) == Change(KEY)


def test_of_a_deployment_it_is_kept_how_many_pods_are_ready_and_why_none_can_be_made() -> None:
    store = Store()
    quota = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}

    def deployment(version: int, **status: Any) -> Body:
        metadata = {"name": "llama-router", "namespace": "llm", "uid": "d", "resourceVersion": str(version)}
        labels = {"labels": {naming.PAIR: "llama"}}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata | labels, "status": status}

    rolling = {"type": "Progressing", "status": "True", "lastUpdateTime": "2026-11-21T12:00:00Z"}
    assert store.put(deployment(1)) == Change(KEY)
    assert store.put(deployment(2, replicas=2, conditions=[rolling])) is None
    assert store.put(deployment(3, replicas=2, readyReplicas=1)) == Change(KEY)
    refused = deployment(4, replicas=2, readyReplicas=1, conditions=[rolling, quota | {"lastUpdateTime": "x"}])
    assert store.put(refused) == Change(KEY)
    kept = store.get(("Deployment", "llm", "llama-router"))
    assert kept is not None
    assert kept["status"] == {"readyReplicas": 1, "conditions": [quota]}


def test_an_event_that_is_older_than_the_answer_to_a_write_changes_nothing() -> None:
    store = Store()
    store.put(pod(version=10, phase="Running"))
    assert store.put(pod(version=9, phase="Pending")) is None
    assert next(store.children(KEY))["status"]["phase"] == "Running"


def test_a_listing_may_show_more_of_an_object_at_the_version_that_is_known_and_nothing_else_may() -> None:
    """A watch from before its CRD was upgraded leaves out what is new."""
    store, whole = Store(), pair(generation=2, version=7)
    whole["spec"]["new"] = True
    store.put(pair(generation=2, version=7))
    assert store.put(whole) is None
    assert store.put({**whole, "metadata": {**whole["metadata"], "resourceVersion": "6"}}, says_more=True) is None
    assert store.put(whole, says_more=True) == Change(KEY)
    assert store.put(whole, says_more=True) is None
    assert (store.pair(KEY) or {})["spec"]["new"] is True


def test_a_listing_is_right_at_any_version_about_what_has_not_changed_since_it_began() -> None:
    """An etcd that was restored from a backup: every version is lower, and what had gone is there again."""
    store = Store()
    store.put(pair(generation=3, version=90))
    store.put(pod("gone", version=80, uid="gone"))
    store.remove(pod("gone", version=85, uid="gone"))
    pairs, pods = (store.versions(kind, "llm") for kind in ("StreamPair", "Pod"))
    assert store.put(pair(generation=2, version=40), before=pairs) == Change(KEY, new_spec=True)
    assert store.put(pod("gone", version=30, uid="gone"), before=pods) == Change(KEY)
    assert store.put(pair(generation=3, version=41)) == Change(KEY, new_spec=True), "and its watch goes on from there"
    assert store.put(pair(generation=2, version=40)) is None


def test_an_answer_to_a_write_that_comes_while_a_list_is_read_is_younger_than_the_list() -> None:
    store = Store()
    store.put(pod("changed", version=7, uid="1", phase="Pending"))
    store.put(pod("left", version=7, uid="2"))
    before = store.versions("Pod", "llm")
    store.put(pod("changed", version=9, uid="1", phase="Running"))
    store.put(pod("made", version=10, uid="3", phase="Running"))
    store.remove(pod("left", version=11, uid="2"))
    for listed in (pod("changed", version=7, uid="1"), pod("made", version=8, uid="3"), pod("left", uid="2")):
        assert store.put(listed, before=before) is None
    phases = {child["metadata"]["name"]: child["status"]["phase"] for child in store.children(KEY)}
    assert phases == {"changed": "Running", "made": "Running"}


def test_an_answer_that_is_read_after_the_object_went_does_not_bring_it_back() -> None:
    store = Store()
    store.put(pod(version=1))
    assert store.remove(pod(version=3)) == Change(KEY)
    assert store.put(pod(version=2)) is None
    assert list(store.children(KEY)) == []


def test_an_object_that_lost_our_label_may_come_back() -> None:
    store = Store()
    store.put(pod(version=1))
    store.remove(pod(version=3))
    assert store.put(pod(version=4)) == Change(KEY)


def test_the_end_of_a_predecessor_does_not_take_its_successor_away() -> None:
    store = Store()
    store.put(pod(version=5, uid="u2"))
    assert store.remove(pod(version=4, uid="u1")) is None
    assert len(store) == 1


def test_a_complete_list_says_what_went_while_nobody_watched() -> None:
    store = Store()
    store.put(pod("a", uid="1"))
    store.put(pod("b", uid="2"))
    store.put(pair())
    elsewhere = pod("c", uid="3")
    elsewhere["metadata"]["namespace"] = "other"
    store.put(elsewhere)
    assert store.keep_only(store.versions("Pod", "llm"), {("Pod", "llm", "a")}) == [Change(KEY)]
    assert [child["metadata"]["name"] for child in store.children(KEY)] == ["a"]
    assert store.pair(KEY) is not None
    assert len(store) == 3


def test_what_was_written_while_a_list_was_read_is_younger_than_the_list() -> None:
    store = Store()
    store.put(pod("changed", version=1, uid="1"))
    before = store.versions("Pod", "llm")
    store.put(pod("made", version=8, uid="2"))
    store.put(pod("changed", version=9, uid="1"))
    assert store.keep_only(before, set()) == []
    assert sorted(child["metadata"]["name"] for child in store.children(KEY)) == ["changed", "made"]


def test_a_spec_is_new_with_its_generation_and_with_its_uid_and_a_status_is_not() -> None:
    store = Store()
    assert store.put(pair()) == Change(KEY, new_spec=True)
    told = pair(version=2)
    told["status"] = {"lanes": 2}
    assert store.put(told) == Change(KEY)
    assert store.put(pair(generation=2, version=3)) == Change(KEY, new_spec=True)
    assert store.put(pair(generation=2, version=4, uid="p2")) == Change(KEY, new_spec=True)


def test_an_object_that_is_given_to_another_pair_is_found_there_alone() -> None:
    store = Store()
    store.put(pod(version=1))
    moved = pod(version=2)
    moved["metadata"]["labels"] = {naming.PAIR: "mistral"}
    assert store.put(moved) == Change(("llm", "mistral"))
    assert list(store.children(KEY)) == []
