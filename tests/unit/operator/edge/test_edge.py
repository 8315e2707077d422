"""One reconcile carried out: in what order, what stops it, what is said of it. The API server is a dictionary."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from streamserve.contract import runtime_config
from streamserve.operator import naming
from streamserve.operator.edge.outcomes import (
    ApiError,
    Conflict,
    Failing,
    Refused,
    ServerFailed,
    Throttled,
    Unreachable,
)
from streamserve.operator.edge.reconcile import FAILING_SECONDS, REFUSED_AGAIN_SECONDS
from streamserve.operator.events import FIRST_SECONDS
from streamserve.operator.site import Site

from .dictionary_server import KEY, Bench, Body, Echoing

MakeBody = Callable[..., Body]
NEW_REVISION = {"engine": {"kind": "Simulator", "image": "registry.example/b:1"}}


@pytest.fixture
def bench(make_body: MakeBody, site: Site) -> Bench:
    return Bench(make_body(), site)


async def test_children_come_before_the_status_and_the_events_after_it(bench: Bench) -> None:
    await bench.once()
    kinds = [call.split("/namespaces/llm/")[1].split("/")[0] for call in bench.server.writes]
    assert kinds.index("configmaps") < kinds.index("pods") < kinds.index("streampairs") < kinds.index("events")


async def test_a_second_look_finds_nothing_left_to_do(bench: Bench) -> None:
    await bench.until_quiet()
    assert bench.server.calls == []


async def test_what_changed_is_told_once(bench: Bench) -> None:
    await bench.once()
    first = [call for call in bench.server.writes if call.startswith("POST")]
    await bench.once()
    again = [call for call in bench.server.writes if call.startswith("POST")]
    assert len(first) == 1, "that something is under way: what is said for the first time is no change"
    assert again == []


@pytest.mark.parametrize(("edited", "wanted"), [(False, False), (True, True)])
async def test_an_edit_that_is_seen_in_the_answer_to_the_status_first_is_looked_at_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, edited: bool, wanted: bool
) -> None:
    """Its own event is older than that answer, so the watch has no news of it."""
    await bench.until_quiet()
    path = f"/apis/streamserve.io/v1alpha1/namespaces/{KEY[0]}/streampairs/{KEY[1]}"
    apply, event = bench.server.apply, copy.deepcopy(bench.server.objects[path])
    event["metadata"] |= {"generation": 2, "resourceVersion": str(bench.server.version + 1)}
    event["spec"] |= {"lanes": 1}

    async def somebody_was_faster(where: str, manifest: Mapping[str, Any], **how: Any) -> Body:
        if where == f"{path}/status" and edited:
            bench.server.version += 1
            bench.server.objects[path] = {**bench.server.objects[path], "spec": copy.deepcopy(event["spec"])}
            bench.server.objects[path]["metadata"]["generation"] = 2
        return await apply(where, manifest, **how)

    monkeypatch.setattr(bench.server, "apply", somebody_was_faster)
    pod = bench.pods()[0]
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    pod["status"] = {"containerStatuses": [{"name": "worker", "ready": False, "restartCount": 0, "state": waiting}]}
    bench.put(pod)
    again = await bench.once()
    assert [write for write in bench.server.writes if not write.startswith("POST")] == [f"APPLY {path}/status"]
    assert (again is not None and again < 1.0) == wanted
    if edited:
        assert bench.store.put(event) is None, "what the watch brings then"
        await bench.once()
        assert bench.drains(), "a lane goes, as the edit says"


async def test_what_a_pod_waits_for_is_read_off_its_events_and_told_within_ten_seconds(bench: Bench) -> None:
    await bench.until_quiet()
    pod = bench.pods()[0]
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    bench.server.version += 1
    pod["metadata"]["resourceVersion"] = str(bench.server.version)
    pod["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2027-01-15T08:00:00Z"}],
        "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ContainerCreating"}}}],
    }
    bench.store.put(pod)
    query = urlencode({"fieldSelector": f"involvedObject.name={name},involvedObject.uid={uid}", "limit": 200})
    bench.server.objects[f"/api/v1/namespaces/{KEY[0]}/events?{query}"] = {
        "items": [
            {
                "reason": "FailedMount",
                "message": 'secret "own-tls" not found',
                "lastTimestamp": pod["status"]["conditions"][0]["lastTransitionTime"],
            }
        ]
    }
    await bench.once()
    assert bench.server.calls == [], "a reconcile waits for no Event"
    assert bench.condition("Degraded")[0] == "False"
    bench.now += FIRST_SECONDS
    await bench.pod_events.turn()
    assert bench.asked == [KEY]
    assert [call for call in bench.server.calls if call[0] == "GET"] == [
        ("GET", f"/api/v1/namespaces/llm/events?{query}")
    ]
    await bench.once()
    said = f'pod {name}: FailedMount: secret "own-tls" not found'
    assert bench.condition("Degraded") == ("True", "ContainerCannotStart", said)


async def test_a_strangers_object_is_left_alone_and_told_and_no_pod_is_made_that_would_mount_it(bench: Bench) -> None:
    path = "/api/v1/namespaces/llm/configmaps/demo-config"
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-config", "namespace": "llm"}}
    bench.server.objects[path] = copy.deepcopy(stranger)
    await bench.until_quiet()
    assert bench.server.objects[path] == stranger
    assert not any("/pods/" in path for path in bench.server.objects)
    assert bench.condition("Degraded")[:2] == ("True", "ForeignObject")
    del bench.server.objects[path]
    bench.now += 20.0
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"
    assert any("/pods/" in path for path in bench.server.objects)


async def test_an_object_of_ours_that_lost_its_label_is_found_by_its_name_and_mended(bench: Bench) -> None:
    await bench.until_quiet()
    path = "/api/v1/namespaces/llm/services/demo-router"
    bench.server.objects[path]["metadata"]["labels"] = {}
    bench.store.remove(bench.server.objects[path])
    await bench.once()
    assert bench.server.writes == [], "it is looked at before it is written"
    await bench.until_quiet()
    assert bench.server.objects[path]["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "streamserve"


async def test_a_refused_write_is_told_with_the_servers_words_and_tried_again_later(bench: Bench) -> None:
    bench.server.errors["/poddisruptionbudgets/demo-workers"] = [Refused("exceeded quota: 1", status=403)]
    await bench.until_quiet()
    assert "exceeded quota: 1" in bench.condition("Degraded")[2]
    assert any("/pods/" in path for path in bench.server.objects), "no pod mounts a PodDisruptionBudget"
    bench.now += REFUSED_AGAIN_SECONDS + 1.0
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"


HELD_BACK = {
    "a ConfigMap that pods mount: no pod": ("/configmaps/demo-config", ()),
    "a pod: the rest of its lane": ("/pods/demo-decode-0-0-", ("1",)),
}


@pytest.mark.parametrize(("path", "lanes"), HELD_BACK.values(), ids=HELD_BACK)
async def test_what_is_refused_holds_back_only_what_would_be_made_by_halves(
    bench: Bench, path: str, lanes: tuple[str, ...]
) -> None:
    bench.server.refuses[path] = "no"
    await bench.until_quiet()
    assert {body["metadata"]["labels"][naming.LANE] for body in bench.pods()} == set(lanes)
    assert bench.condition("Degraded")[1] == "WriteRefused"


async def test_a_lost_pod_comes_back_although_another_write_is_refused_for_weeks(bench: Bench) -> None:
    bench.server.refuses["/deployments/demo-router"] = "exceeded quota"
    await bench.until_quiet()
    lost = bench.pods()[0]
    bench.lose(lost)
    await bench.until_quiet()
    assert lost["metadata"]["name"] in {body["metadata"]["name"] for body in bench.pods()}


async def test_a_lane_is_not_drained_for_pods_that_the_server_would_not_take(bench: Bench) -> None:
    await bench.until_quiet()
    before = {body["metadata"]["name"] for body in bench.pods()}
    bench.server.refuses["REHEARSE"] = "spec.nodeSelector: Invalid value"
    bench.edit(**NEW_REVISION)
    await bench.until_quiet()
    assert not any(naming.DRAIN in body["metadata"].get("annotations", {}) for body in bench.pods())
    assert {body["metadata"]["name"] for body in bench.pods()} == before
    assert "spec.nodeSelector: Invalid value" in bench.condition("Degraded")[2]
    del bench.server.refuses["REHEARSE"]
    bench.now += REFUSED_AGAIN_SECONDS + 1.0
    await bench.once()
    assert bench.drains(), "now it is drained"


async def test_a_webhook_that_takes_no_dry_run_stops_no_rollout(bench: Bench) -> None:
    await bench.until_quiet()
    bench.server.refuses["REHEARSE"] = 'admission webhook "old.example" does not support dry run'
    bench.edit(**NEW_REVISION)
    await bench.once()
    assert bench.drains()


async def test_a_lane_that_is_drained_by_half_is_drained_whole_whatever_is_refused_meanwhile(bench: Bench) -> None:
    await bench.until_quiet()
    marked = bench.pods()[0]
    lane = marked["metadata"]["labels"][naming.LANE]
    marked["metadata"]["annotations"] = {naming.DRAIN: "RevisionChanged", naming.DRAIN_SINCE: "2027-01-15T08:00:00Z"}
    bench.put(marked)
    bench.server.refuses["REHEARSE"] = "spec.nodeSelector: Invalid value"
    bench.edit(**NEW_REVISION)
    await bench.once()
    mates = {body["metadata"]["name"] for body in bench.pods() if body["metadata"]["labels"][naming.LANE] == lane}
    assert bench.drains() == mates - {marked["metadata"]["name"]}


async def test_no_pod_is_given_up_while_the_configmap_turns_out_to_be_a_strangers(bench: Bench) -> None:
    await bench.until_quiet()
    path = "/api/v1/namespaces/llm/configmaps/demo-config"
    bench.store.remove(bench.server.objects[path])
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-config", "namespace": "llm"}}
    bench.server.objects[path] = stranger
    bench.edit(**NEW_REVISION)
    for _ in range(3):
        await bench.once()
        assert not bench.drains()
    assert bench.condition("Degraded")[1] == "ForeignObject"


async def test_a_configmap_that_lost_its_label_is_remembered_although_another_write_fails(bench: Bench) -> None:
    await bench.until_quiet()
    fleet = Echoing()
    bench.reconciler = bench.restarted(fleet)
    live = bench.object("configmaps/demo-config")
    live["metadata"]["labels"] = {}
    bench.store.remove(live)
    del bench.server.objects["/apis/policy/v1/namespaces/llm/poddisruptionbudgets/demo-workers"]
    bench.store.remove(bench.store_child("PodDisruptionBudget", "demo-workers"))
    bench.server.errors["/poddisruptionbudgets/"] = [ServerFailed("broken", status=500)] * 20
    for _ in range(4):
        with contextlib.suppress(ServerFailed):
            await bench.once()
    assert fleet.applied


async def test_workers_do_not_wait_for_the_routers_account(bench: Bench) -> None:
    bench.server.refuses["/serviceaccounts/demo-router"] = "no more accounts"
    await bench.until_quiet()
    assert len(bench.pods()) == 4


async def test_a_drain_that_is_refused_is_tried_again_later_and_nothing_is_asked_meanwhile(bench: Bench) -> None:
    await bench.until_quiet()
    bench.server.refuses["PATCH /api/v1/namespaces/llm/pods/"] = "policy"
    bench.edit(**NEW_REVISION)
    await bench.once()
    await bench.until_quiet()
    await bench.once()
    assert bench.server.calls == []
    assert bench.condition("Degraded")[1] == "WriteRefused"


async def test_what_is_wanted_no_more_is_told_no_more(bench: Bench) -> None:
    await bench.until_quiet()
    bench.server.refuses["REHEARSE"] = "spec.nodeSelector: Invalid value"
    bench.edit(**NEW_REVISION)
    await bench.until_quiet()
    assert bench.condition("Degraded")[1] == "WriteRefused"
    bench.edit(paused=True)
    again = await bench.once()
    assert again is not None and again < 1.0
    await bench.once()
    assert bench.condition("Degraded")[0] == "False"


async def test_a_configuration_whose_configmap_is_refused_for_good_goes_out_all_the_same(bench: Bench) -> None:
    await bench.until_quiet()
    fleet = Echoing()
    bench.reconciler = bench.restarted(fleet)
    bench.server.refuses["/configmaps/"] = "policy"
    bench.edit(speculation={"policy": "Off"})
    await bench.once()
    assert fleet.applied


async def test_a_full_quota_is_no_reason_not_to_drain_for_a_pod_that_will_take_the_place(bench: Bench) -> None:
    await bench.until_quiet()
    bench.server.refuses["REHEARSE"] = "pods is forbidden: exceeded quota: gpus"
    bench.edit(**NEW_REVISION)
    await bench.once()
    assert bench.drains()


@pytest.mark.parametrize(
    "error",
    [ServerFailed("failed calling webhook", status=500), Throttled("slow", status=429), Refused("no", status=403)],
    ids=["500", "429", "403"],
)
async def test_a_kill_switch_reaches_the_processes_although_every_other_write_fails(
    bench: Bench, error: ApiError
) -> None:
    await bench.until_quiet()
    fleet = Echoing()
    bench.reconciler = bench.restarted(fleet)
    bench.lose(bench.pods()[0])
    bench.server.errors["/pods"] = [error] * 100
    bench.edit(speculation={"policy": "Off"})
    with contextlib.suppress(type(error)):
        await bench.once()
    assert [id.generation for id in fleet.applied] == [2]
    config = runtime_config.decode(bench.object("configmaps/demo-config")["data"]["config.json"])
    assert config.id == fleet.applied[-1], "who leads next knows of it"


async def test_a_configuration_goes_nowhere_before_its_configmap_holds_it(bench: Bench) -> None:
    fleet = Echoing()
    bench.reconciler = bench.restarted(fleet)
    bench.server.errors["/configmaps/demo-config"] = [ServerFailed("broken", status=500)]
    with pytest.raises(ServerFailed):
        await bench.once()
    assert fleet.applied == []
    await bench.once()
    assert len(fleet.applied) == 1


async def test_a_new_spec_is_tried_at_once_although_the_one_before_was_refused(bench: Bench) -> None:
    bench.server.errors["/deployments/demo-router"] = [Refused("forbidden", status=422)]
    await bench.until_quiet()
    assert bench.condition("Degraded")[1] == "WriteRefused"
    bench.edit()
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"


@pytest.mark.parametrize(
    "error",
    [ServerFailed("broken", status=500), Throttled("slow", status=429), Conflict("changed", status=409)],
    ids=["500", "429", "409"],
)
async def test_a_retryable_error_ends_the_run_before_anything_is_said_and_the_next_completes_it(
    bench: Bench, error: ApiError
) -> None:
    bench.server.errors["/deployments/demo-router"] = [error]
    with pytest.raises(type(error)):
        await bench.once()
    assert not any("streampairs" in call or "events" in call for call in bench.server.writes)
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"


FAILS = [ServerFailed("range is full", status=500), Throttled("slow", status=429), Unreachable("no answer in time")]


@pytest.mark.parametrize("error", FAILS, ids=["500", "429", "silence"])
async def test_a_write_that_keeps_failing_is_told_with_its_object_and_words(bench: Bench, error: Failing) -> None:
    bench.server.errors["/services/demo-router"] = [error] * 3
    for _ in range(2):
        with pytest.raises(type(error)):
            await bench.once()
    assert not any("streampairs" in call for call in bench.server.writes), "a server that restarts is no news"
    bench.now += FAILING_SECONDS
    with pytest.raises(type(error)):
        await bench.once()
    status, reason, message = bench.condition("Degraded")
    assert (status, reason) == ("True", "WriteFails")
    assert f"Service demo-router: {error.message}" in message
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"


@pytest.mark.parametrize("new_term", [False, True], ids=["short", "long enough to lose the lease"])
async def test_an_api_server_that_was_away_for_a_while_is_not_told(bench: Bench, new_term: bool) -> None:
    bench.server.errors["/services/demo-router"] = [Unreachable("no route")] * (1 + new_term)
    with pytest.raises(Unreachable):
        await bench.once()
    bench.now += FAILING_SECONDS
    if new_term:
        bench.term += 1
        with pytest.raises(Unreachable):
            await bench.once()
        assert not any("streampairs" in call for call in bench.server.writes), "it only comes back"
    again = await bench.once()
    assert again is not None
    assert again < 1.0
    assert new_term or not any("streampairs" in call for call in bench.server.writes), "it was decided while it failed"
    await bench.until_quiet()
    assert bench.condition("Degraded")[0] == "False"


async def test_a_write_that_failed_and_is_not_needed_any_more_is_not_told_for_ever(bench: Bench) -> None:
    await bench.until_quiet()
    good = bench.server.objects["/api/v1/namespaces/llm/services/demo-router"]

    def found_by_a_hand(**labels: str) -> None:
        bench.server.version += 1
        version = str(bench.server.version)
        metadata = {**good["metadata"], "labels": {**good["metadata"]["labels"], **labels}, "resourceVersion": version}
        bench.store.put({**good, "metadata": metadata})

    found_by_a_hand(**{"app.kubernetes.io/name": "another"})
    bench.server.errors["/services/demo-router"] = [ServerFailed("no", status=500)] * 2
    for _ in range(2):
        with pytest.raises(ServerFailed):
            await bench.once()
        bench.now += FAILING_SECONDS
    assert bench.condition("Degraded")[1] == "WriteFails"
    found_by_a_hand()
    assert (await bench.once() or 60.0) < 1.0, "what it says was decided before the success"
    await bench.once()
    assert bench.condition("Degraded")[0] == "False"


CONFIG = "/api/v1/namespaces/llm/configmaps/demo-config"


@pytest.mark.parametrize("restarts", [False, True], ids=["by the same process", "by one that restarts"])
async def test_a_configuration_whose_configmap_is_refused_is_not_numbered_anew_at_each_run(
    bench: Bench, restarts: bool
) -> None:
    fleet = Echoing()
    bench.reconciler = bench.restarted(fleet)
    bench.server.errors["/configmaps/demo-config"] = [Refused("exceeded quota: 1", status=403)] * 50
    await bench.once()
    if restarts:
        bench.reconciler = bench.restarted(fleet)
    for _ in range(6):
        bench.now += REFUSED_AGAIN_SECONDS
        await bench.once()
    assert len(set(fleet.applied)) == 1 + restarts
    assert fleet.applied[-1] == fleet.applied[-2]


async def test_what_another_leader_has_decided_since_is_believed_in_a_new_term(bench: Bench) -> None:
    await bench.until_quiet()
    live = copy.deepcopy(bench.server.objects[CONFIG])
    theirs = runtime_config.decode(live["data"]["config.json"])
    theirs = theirs.model_copy(update={"served_names": ("other",)})
    live["data"] = {"config.json": runtime_config.encode(theirs).decode()}
    bench.server.version += 1
    live["metadata"]["resourceVersion"] = str(bench.server.version)
    for term, step in ((1, 0), (2, 1)):
        bench.term = term
        bench.store.put(live)
        await bench.until_quiet()
        made = runtime_config.decode(bench.server.objects[CONFIG]["data"]["config.json"])
        assert made.id.step == step, "its own words in the same term, a later step than the other's in the next"
        bench.server.version += 1
        live["metadata"]["resourceVersion"] = str(bench.server.version)


async def test_an_event_that_is_not_taken_costs_nothing(bench: Bench) -> None:
    bench.server.errors["/namespaces/llm/events"] = [ServerFailed("no room", status=500)] * 20
    await bench.until_quiet()


async def test_a_pair_that_is_gone_is_forgotten(bench: Bench) -> None:
    await bench.until_quiet()
    bench.store.remove(bench.body)
    assert await bench.once() is None
    assert bench.server.calls == []
    assert bench.missing() == {}


async def test_missing_lanes_are_told_by_the_name_of_their_pair_until_there_are_none(bench: Bench) -> None:
    await bench.until_quiet()
    assert bench.missing() == {"/".join(KEY): bench.body["spec"]["lanes"]}, "no kubelet is here: no lane serves"
    bench.edit(lanes=0)
    await bench.once()
    assert bench.missing() == {}
