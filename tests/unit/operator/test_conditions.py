"""What each condition says about a cluster in a given state, and when a transition is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from streamserve.contract.streampair import StreamPair
from streamserve.operator.conditions import (
    MAX_MESSAGE_LENGTH,
    OVERDUE_SECONDS,
    ROUTERLESS_SECONDS,
    STEADY_SECONDS,
    Condition,
    overdue_in_seconds,
    transitions,
)
from streamserve.operator.decide import decide
from streamserve.operator.observe import Echo, Observed, Pod, Router
from streamserve.operator.site import Site

from .cluster import Cluster

MakeBody = Callable[..., dict[str, Any]]
Change = Callable[[Observed], Observed]


def pods(change: Callable[[Pod], Pod]) -> Change:
    """The same change on the first pod, a decode pod of lane-0."""
    return lambda seen: replace(seen, pods=(change(seen.pods[0]), *seen.pods[1:]))


def no_router_ready(*pods: Router) -> Change:
    """`pods` are what there is of them."""
    return lambda seen: replace(seen, ready_routers=0, routers=pods)


def router(**changes: Any) -> Router:
    """A pod of the router that its kubelet has just begun with."""
    return replace(Router(name="tiny-router-5d8-x7k2p", uid="r"), unready_since_seconds=START, **changes)


def echoes(**changes: Echo) -> Change:
    def change(seen: Observed) -> Observed:
        names = {"first": seen.pods[0].name, "router": "router-1"}
        return replace(seen, echoes={**seen.echoes, **{names[who]: echo for who, echo in changes.items()}})

    return change


LONG_AGO, LATER = 60.0, 1e11
START = 1_800_000_000.0


def _held(pod: Pod, finalizer: str) -> dict[str, Any]:
    return {**pod.live, "metadata": {**pod.live["metadata"], "finalizers": [finalizer]}}


CASES: dict[str, tuple[dict[str, Any], Change, dict[str, tuple[str, str, str]]]] = {
    "all is well": (
        {},
        lambda seen: seen,
        {
            "Available": ("True", "LanesReady", "2 of 2 lanes take traffic"),
            "Ready": ("True", "LanesReady", "2 of 2 prefill pods and 2 of 2 decode pods"),
            "PrefillReady": ("True", "PodsReady", "2 of 2"),
            "ConfigApplied": ("True", "Applied", "5 of 5 have applied generation 3"),
            "Degraded": ("False", "AsExpected", ""),
            "SpeculationEffective": ("False", "SpeculationOff", ""),
        },
    ),
    "one worker has not applied the configuration yet": (
        {},
        echoes(first=Echo(2)),
        {"ConfigApplied": ("False", "Applying", "4 of 5 have applied generation 3")},
    ),
    "one worker refuses the configuration and says why": (
        {},
        echoes(first=Echo(2, error="max_depth 9 is above the engine's 6")),
        {"ConfigApplied": ("False", "ConfigRefused", "max_depth 9 is above the engine's 6")},
    ),
    "a router has not applied it yet": (
        {},
        echoes(router=Echo(2)),
        {"ConfigApplied": ("False", "Applying", "4 of 5")},
    ),
    "a lane is fenced": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate=False)),
        {
            "Available": ("True", "LanesReady", "1 of 2 lanes take traffic"),
            "Ready": ("False", "LanesNotReady", "1 of 2 decode pods"),
            "DecodeReady": ("False", "PodsNotReady", "1 of 2"),
            "PrefillReady": ("True", "PodsReady", "2 of 2"),
        },
    ),
    "an image can not be pulled": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate=None, stuck="ImagePullBackOff: no such tag")),
        {
            "Degraded": ("True", "ImagePullFailed", "-decode-0-0-"),
            "Ready": ("False", "ImagePullFailed", "no such tag"),
        },
    ),
    "a Secret is missing": (
        {},
        pods(lambda pod: replace(pod, ready=False, stuck='CreateContainerConfigError: secret "hf" not found')),
        {"Degraded": ("True", "ContainerCannotStart", 'secret "hf" not found')},
    ),
    "a Secret that a pod mounts is missing, as its Events say": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate=None, held_back='FailedMount: secret "own-tls" not found')),
        {
            "Degraded": ("True", "ContainerCannotStart", 'FailedMount: secret "own-tls" not found'),
            "Ready": ("False", "ContainerCannotStart", 'secret "own-tls" not found'),
        },
    ),
    "a PersistentVolumeClaim is missing": (
        {},
        pods(lambda pod: replace(pod, ready=False, unschedulable='persistentvolumeclaim "weights" not found')),
        {
            "Degraded": ("True", "Unschedulable", '-decode-0-0-'),
            "Ready": ("False", "Unschedulable", 'persistentvolumeclaim "weights" not found'),
        },
    ),
    "no GPU is free": (
        {},
        pods(lambda pod: replace(pod, ready=False, unschedulable="0/2 nodes: Insufficient nvidia.com/gpu")),
        {"Degraded": ("True", "Unschedulable", "Insufficient nvidia.com/gpu")},
    ),
    "a worker that served keeps dying": (
        {},
        pods(lambda pod: replace(pod, ready=False, restarts=7, last_words="out of memory")),
        {"Degraded": ("True", "CrashLoop", "restarted 7 times; its last words: out of memory")},
    ),
    "a worker that has never served says at once what it dies of": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate=None, restarts=1, last_words="no such flag")),
        {
            "Degraded": ("True", "CrashLoop", "restarted once; its last words: no such flag"),
            "Ready": ("False", "CrashLoop", "no such flag"),
        },
    ),
    "a worker that served and died once is no reason to wake anybody": (
        {},
        pods(lambda pod: replace(pod, ready=False, restarts=1, last_words="out of memory")),
        {"Degraded": ("False", "AsExpected", "")},
    ),
    "a pod that was asked to go has its grace": (
        {},
        pods(lambda pod: replace(pod, ready=False, deletion_seconds=LATER, node="node-b")),
        {"Degraded": ("False", "AsExpected", ""), "Ready": ("False", "LanesNotReady", "1 of 2 decode pods")},
    ),
    "a pod is there long after its grace": (
        {},
        pods(lambda pod: replace(pod, ready=False, deletion_seconds=LONG_AGO, node="node-b")),
        {
            "Degraded": ("True", "PodNotGone", "gone at 00:01:00 UTC: node node-b does not say that it stopped"),
            "Ready": ("False", "PodNotGone", "-decode-0-0-"),
        },
    ),
    "the cluster does not hear from a node whose worker routers send to": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate_since_seconds=60.0, unready_since_seconds=90.0, node="node-b")),
        {
            "Degraded": ("True", "NodeSilent", "node node-b does not report; pod tiny-decode-0-0-"),
            "Ready": ("False", "NodeSilent", "1 of 2 decode pods"),
            "Available": ("True", "LanesReady", "2 of 2 lanes take traffic"),
        },
    ),
    "a kubelet has not yet said what follows from a gate that just opened": (
        {},
        pods(lambda pod: replace(pod, ready=False, gate_since_seconds=90.0, unready_since_seconds=60.0)),
        {
            "Degraded": ("False", "AsExpected", ""),
            "Ready": ("False", "LanesNotReady", "1 of 2 decode pods"),
            "Available": ("True", "LanesReady", "2 of 2 lanes take traffic"),
        },
    ),
    "a silent node's worker is fenced by the routers": (
        {},
        pods(
            lambda pod: replace(
                pod, ready=False, gate=False, gate_since_seconds=95.0, unready_since_seconds=90.0, node="node-b"
            )
        ),
        {
            "Degraded": ("False", "AsExpected", ""),
            "Available": ("True", "LanesReady", "1 of 2 lanes take traffic"),
        },
    ),
    "a pod is held by somebody's finalizer": (
        {},
        pods(lambda pod: replace(pod, ready=False, deletion_seconds=LONG_AGO, live=_held(pod, "acme.io/keep"))),
        {"Degraded": ("True", "PodNotGone", "its finalizers hold it (acme.io/keep)")},
    ),
    "Redis is away and a pod waits for its lane": (
        {},
        lambda seen: replace(
            pods(lambda pod: replace(pod, ready=False, gate=None))(seen), redis_away="AuthenticationError"
        ),
        {
            "Degraded": ("True", "RedisAway", "Redis does not answer (AuthenticationError)"),
            "Ready": ("False", "RedisAway", "1 of 2 decode pods"),
        },
    ),
    "Redis is away and everything serves": (
        {},
        lambda seen: replace(seen, redis_away="ConnectionError"),
        {"Degraded": ("False", "AsExpected", ""), "Ready": ("True", "LanesReady", "")},
    ),
    "Redis is away and a pod cannot start for a reason of its own": (
        {},
        lambda seen: replace(
            pods(lambda pod: replace(pod, ready=False, stuck="ImagePullBackOff: no such tag"))(seen),
            redis_away="ConnectionError",
        ),
        {"Degraded": ("True", "ImagePullFailed", "no such tag")},
    ),
    "a router's image can not be pulled and none is ready": (
        {},
        no_router_ready(router(stuck="ImagePullBackOff: no such tag")),
        {
            "Degraded": ("True", "ImagePullFailed", "pod tiny-router-5d8-x7k2p: ImagePullBackOff: no such tag"),
            "Available": ("False", "NoRouterReady", "pod tiny-router-5d8-x7k2p does not run; 2 of 2 lanes"),
            "Ready": ("False", "ImagePullFailed", "tiny-router-5d8-x7k2p"),
            "ConfigApplied": ("False", "NoRouterReady", "5 of 5 have applied"),
            "DecodeReady": ("True", "PodsReady", "2 of 2"),
        },
    ),
    "a router of another image can not start, and the one of before serves on": (
        {},
        lambda seen: replace(seen, routers=(router(stuck="ErrImagePull: denied"), router(name="old", ready=True))),
        {
            "Degraded": ("True", "ImagePullFailed", "pod tiny-router-5d8-x7k2p: ErrImagePull: denied"),
            "Available": ("True", "LanesReady", ""),
            "Ready": ("True", "LanesReady", ""),
            "ConfigApplied": ("True", "Applied", ""),
        },
    ),
    "a router dies as soon as it starts": (
        {},
        no_router_ready(router(restarts=1, last_words="error: no such flag")),
        {"Degraded": ("True", "CrashLoop", "pod tiny-router-5d8-x7k2p: restarted once; its last words: error: no")},
    ),
    "a router that served has died once and is back in a moment": (
        {},
        no_router_ready(router(restarts=1, has_served=True, last_words="OOMKilled 137")),
        {
            "Degraded": ("False", "AsExpected", ""),
            "Available": ("False", "NoRouterReady", "does not run"),
            "Ready": ("False", "NoRouterReady", "2 of 2 decode pods"),
        },
    ),
    "a router that served keeps dying": (
        {},
        no_router_ready(router(restarts=4, has_served=True, last_words="OOMKilled 137")),
        {"Degraded": ("True", "CrashLoop", "restarted 4 times; its last words: OOMKilled 137")},
    ),
    "a router died of its start, stays up now and waits for lanes": (
        {},
        no_router_ready(router(restarts=1, running_since_seconds=START - STEADY_SECONDS)),
        {"Degraded": ("False", "AsExpected", ""), "Available": ("False", "NoRouterReady", "runs and does not say")},
    ),
    "no node has room for a router": (
        {},
        no_router_ready(router(unschedulable="0/2 nodes: Insufficient cpu")),
        {"Degraded": ("True", "Unschedulable", "pod tiny-router-5d8-x7k2p: 0/2 nodes: Insufficient cpu")},
    ),
    "a Secret that a router mounts is missing": (
        {},
        no_router_ready(router(held_back='FailedMount: secret "streamserve" not found')),
        {"Degraded": ("True", "ContainerCannotStart", 'tiny-router-5d8-x7k2p: FailedMount: secret "streamserve"')},
    ),
    "a quota leaves no room for routers": (
        {},
        lambda seen: replace(seen, ready_routers=0, routers_refused='pods "x" is forbidden: exceeded quota: small'),
        {
            "Degraded": ("True", "RouterPodsRefused", "exceeded quota: small"),
            "Available": ("False", "NoRouterReady", "its Deployment has no pod"),
            "Ready": ("False", "RouterPodsRefused", "exceeded quota: small"),
        },
    ),
    "a lane has just opened, and a router that has waited for it long has yet to see it": (
        {},
        no_router_ready(replace(router(running_since_seconds=1.0), unready_since_seconds=1.0)),
        {"Degraded": ("False", "AsExpected", ""), "Available": ("False", "NoRouterReady", "")},
    ),
    "a router was evicted and another one serves": (
        {},
        lambda seen: replace(seen, routers=(router(leaving=True, restarts=9), router(name="new", ready=True))),
        {"Degraded": ("False", "AsExpected", ""), "Available": ("True", "LanesReady", "")},
    ),
    "lanes start, and routers wait for the first": (
        {},
        lambda seen: replace(
            seen,
            pods=tuple(replace(pod, ready=False, gate=None) for pod in seen.pods),
            ready_routers=0,
            routers=(router(running_since_seconds=1.0),),
        ),
        {
            "Available": ("False", "NoLaneReady", "0 of 2 lanes"),
            "Ready": ("False", "LanesNotReady", "0 of 2 decode pods"),
            "Degraded": ("False", "AsExpected", ""),
        },
    ),
    "without lanes no router has to be ready": (
        {"lanes": 0},
        no_router_ready(router(running_since_seconds=1.0)),
        {
            "Available": ("False", "ScaledToZero", ""),
            "Ready": ("True", "LanesReady", "0 of 0"),
            "Degraded": ("False", "AsExpected", ""),
            "ConfigApplied": ("True", "Applied", "1 of 1"),
        },
    ),
    "speculation is under way": (
        {"speculation": {"method": "Ngram"}},
        lambda seen: seen,
        {"SpeculationEffective": ("True", "Drafting", "2 decode workers draft")},
    ),
    "speculation has fallen back": (
        {"speculation": {"method": "Ngram"}},
        echoes(first=Echo(3, speculation_fallback=True)),
        {"SpeculationEffective": ("False", "FallenBack", "-decode-0-0-")},
    ),
    "speculation is not known to work before a worker reports": (
        {"speculation": {"method": "Ngram"}},
        lambda seen: replace(seen, echoes={}),
        {"SpeculationEffective": ("Unknown", "NoSignals", "")},
    ),
    "nothing serves": (
        {"lanes": 0},
        lambda seen: replace(seen, echoes={}),
        {"Available": ("False", "ScaledToZero", ""), "ConfigApplied": ("False", "NobodyServes", "0 of 0")},
    ),
    "an autoscaler is held back": (
        {"decode.scaling": {"mode": "External"}, "decode.replicas": 1, "ratio": {"maxDecodePerPrefillPercent": 100}},
        lambda seen: _scaled(seen, 5),
        {"DecodeReady": ("True", "ReplicasClamped", "decode: 5 asked for, 1 taken")},
    ),
}  # fmt: skip


def _scaled(seen: Observed, count: int) -> Observed:
    (child,) = [child for child in seen.children.values() if child.kind == "StreamPairScaler"]
    child.live["spec"]["replicas"] = count
    return seen


@pytest.mark.parametrize("name", CASES)
def test_conditions(make_body: MakeBody, site: Site, name: str) -> None:
    edits, change, want = CASES[name]
    cluster = Cluster(make_body(edits, generation=3), site)
    cluster.settle()
    decision = decide({**cluster.body, "status": {}}, site, change(cluster.observe()), cluster.now)
    assert decision.status is not None
    found = {condition["type"]: condition for condition in decision.status["conditions"]}
    for kind, (status, reason, part) in want.items():
        assert (found[kind]["status"], found[kind]["reason"]) == (status, reason), found[kind]
        assert part in found[kind]["message"]
        assert found[kind]["observedGeneration"] == 3


def test_a_pod_that_is_going_is_looked_at_again_when_it_should_be_gone(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(generation=3), site)
    cluster.settle()
    going = pods(lambda pod: replace(pod, deletion_seconds=cluster.now + 30.0))(cluster.observe())
    assert overdue_in_seconds(going, cluster.now) == 30.0 + OVERDUE_SECONDS
    again = decide(cluster.body, site, going, cluster.now).again_seconds
    assert again is not None and again <= 30.0 + OVERDUE_SECONDS
    assert overdue_in_seconds(going, cluster.now + 30.0 + OVERDUE_SECONDS) is None
    assert overdue_in_seconds(cluster.observe(), cluster.now) is None


def test_routers_that_stay_away_are_looked_at_again_and_somebody_is_called(make_body: MakeBody, site: Site) -> None:
    """Every one was ready until now, and runs on: nobody says what is wrong with it."""
    cluster = Cluster(make_body(generation=3), site)
    cluster.settle()
    began = cluster.now
    lost = replace(router(running_since_seconds=1.0), unready_since_seconds=began)
    seen = no_router_ready(lost)(cluster.observe())
    assert overdue_in_seconds(seen, began) == ROUTERLESS_SECONDS
    again = decide(cluster.body, site, seen, began).again_seconds
    assert again is not None and again <= ROUTERLESS_SECONDS
    degraded = {}
    for after in (ROUTERLESS_SECONDS - 1.0, ROUTERLESS_SECONDS):
        decision = decide(cluster.body, site, seen, began + after)
        assert decision.status is not None
        degraded[after] = next(each for each in decision.status["conditions"] if each["type"] == "Degraded")
    early, late = degraded.values()
    assert (early["status"], late["status"], late["reason"]) == ("False", "True", "NoRouterReady")
    assert "no router is ready: pod tiny-router-5d8-x7k2p runs" in late["message"]


def test_a_deployment_that_makes_no_pod_at_all_is_told(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(generation=3), site)
    cluster.settle()
    seen = no_router_ready()(cluster.observe())
    decision = decide(cluster.body, site, seen, cluster.now + ROUTERLESS_SECONDS)
    assert decision.status is not None
    degraded = next(each for each in decision.status["conditions"] if each["type"] == "Degraded")
    assert (degraded["reason"], degraded["message"]) == (
        "NoRouterReady",
        "no router is there: its Deployment has no pod",
    )


def test_the_status_counts_what_there_is(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body({"decode.replicas": 2}, generation=3), site)
    cluster.settle()
    status = dict(cluster.body["status"])
    del status["conditions"], status["revision"]
    assert status == {
        "observedGeneration": 3,
        "lanes": 2,
        "readyLanes": 2,
        "selector": "streamserve.io/pair=tiny,streamserve.io/role in (decode,prefill)",
        "roles": {
            "prefill": {"ready": 2, "total": 2, "summary": "2/2"},
            "decode": {"ready": 4, "total": 4, "summary": "4/4"},
        },
        "config": {"generation": 3, "appliedBy": 7, "of": 7},
        "address": "tiny-router.demo.svc:50051",
    }


def test_an_operator_that_starts_says_nothing_of_processes_that_it_has_not_asked(
    make_body: MakeBody, site: Site
) -> None:
    cluster = Cluster(make_body({"speculation": {"method": "Ngram"}}, generation=3), site)
    cluster.settle()
    starting = replace(cluster.observe(), echoes={}, asked=False)
    decision = decide(cluster.body, site, starting, cluster.now)
    assert (decision.status, decision.events) == (None, ())
    asked = decide(cluster.body, site, replace(starting, asked=True), cluster.now)
    assert {event.type for event in asked.events} == {"ConfigApplied", "SpeculationEffective"}


def test_an_operator_that_starts_does_not_say_of_a_new_spec_what_was_said_of_the_old(
    make_body: MakeBody, site: Site
) -> None:
    cluster = Cluster(make_body(generation=3), site)
    cluster.settle()
    cluster.body["metadata"]["generation"] = 4
    decision = decide(cluster.body, site, replace(cluster.observe(), echoes={}, asked=False), cluster.now)
    assert decision.status is not None
    applied = next(each for each in decision.status["conditions"] if each["type"] == "ConfigApplied")
    assert (applied["status"], applied["observedGeneration"]) == ("False", 4)
    assert decision.status["config"] == {"generation": 4, "appliedBy": 0, "of": 4}


def test_the_status_is_one_that_the_contract_knows(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(), site)
    cluster.settle()
    status = StreamPair.model_validate(cluster.body, by_alias=True, by_name=False).status
    assert status is not None
    assert status.model_dump(by_alias=True, mode="json") == cluster.body["status"]


def condition(status: str, reason: str = "r", message: str = "m") -> Condition:
    return Condition("Ready", status, reason, message, generation=2)


STORED = [
    {"type": "Ready", "status": "True", "reason": "r", "message": "old", "lastTransitionTime": "2026-01-01T00:00:00Z"}
]
TRANSITIONS = {
    "the same status keeps its time and is no event": (condition("True", message="new"), False, False),
    "another reason keeps the time and is an event": (condition("True", "other"), False, True),
    "another status has a new time and is an event": (condition("False"), True, True),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_transition(name: str) -> None:
    found, moves, told = TRANSITIONS[name]
    after, events = transitions(STORED, [found], now=1_800_000_000.0)
    assert after[0].since == ("2027-01-15T08:00:00Z" if moves else "2026-01-01T00:00:00Z")
    assert events == (after if told else ())


FIRST = {
    "a state that nothing was said of before is no change": ("Ready", "False", False),
    "that all is well is no news": ("Degraded", "False", False),
    "what is wrong from the start": ("Degraded", "True", True),
    "that something has begun": ("Progressing", "True", True),
}


@pytest.mark.parametrize("name", FIRST)
def test_what_is_said_for_the_first_time_is_an_event_only_where_it_is_news(name: str) -> None:
    kind, status, told = FIRST[name]
    after, events = transitions((), [Condition(kind, status, "r")], now=1_800_000_000.0)
    assert events == (after if told else ())


def test_a_condition_that_is_not_decided_anew_is_kept() -> None:
    after, _ = transitions(STORED, [replace(condition("True"), type="Degraded")], now=0.0)
    assert [each.type for each in after] == ["Degraded", "Ready"]
    assert after[1].to_status() == {**STORED[0], "observedGeneration": 0}


def test_a_message_is_cut_where_it_would_fill_a_screen(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(), site)
    cluster.settle()
    seen = pods(lambda pod: replace(pod, ready=False, unschedulable="no room " * 500))(cluster.observe())
    decision = decide(cluster.body, site, seen, cluster.now)
    assert decision.status is not None
    assert max(len(each["message"]) for each in decision.status["conditions"]) == MAX_MESSAGE_LENGTH
