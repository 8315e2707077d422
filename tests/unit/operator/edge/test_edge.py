"""One reconcile carried out: in what order, what stops it, what is said of it. The API server is a dictionary."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from streamserve.contract import runtime_config
from streamserve.contract.runtime_config import ConfigId
from streamserve.operator import naming
from streamserve.operator.decide import Decision
from streamserve.operator.edge.apply import Applier
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Conflict, NotFound, Refused, ServerFailed, Throttled
from streamserve.operator.edge.pod_events import PodEvents
from streamserve.operator.edge.reconcile import FAILING_SECONDS, REFUSED_AGAIN_SECONDS, Heard, Reconciler
from streamserve.operator.edge.status_writer import StatusWriter
from streamserve.operator.edge.store import Key, Store
from streamserve.operator.events import FIRST_SECONDS
from streamserve.operator.observe import Echo, Observed
from streamserve.operator.site import Site

Body = dict[str, Any]
MakeBody = Callable[..., Body]
KEY = ("llm", "demo")
NEW_REVISION = {"engine": {"kind": "Simulator", "image": "registry.example/b:1"}}


class Silent:
    """A fleet of which nothing is heard."""

    def heard(self, key: Key) -> Heard:
        return Heard()

    def decided(self, key: Key, decision: Decision, observed: Observed) -> None:
        pass

    def forget(self, key: Key) -> None:
        pass


class Echoing(Silent):
    """One router that has applied what was decided last."""

    def __init__(self) -> None:
        self.applied: list[ConfigId] = []

    def heard(self, key: Key) -> Heard:
        return Heard(echoes={"router": Echo(*self.applied[-1].order)} if self.applied else {})

    def decided(self, key: Key, decision: Decision, observed: Observed) -> None:
        if decision.config is not None:
            self.applied.append(decision.config.id)


class Server:
    """Objects by path. `errors`: raised once each for a write whose path holds the key, before anything is written.
    `refuses`: for good, for a verb or a path that holds the key."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.calls: list[tuple[str, str]] = []
        self.errors: dict[str, list[ApiError]] = {}
        self.refuses: dict[str, str] = {}
        self.version = 100

    @property
    def writes(self) -> list[str]:
        return [f"{verb} {path}" for verb, path in self.calls if verb not in ("GET", "REHEARSE")]

    async def get(self, path: str) -> Body:
        self._called("GET", path)
        if path not in self.objects:
            raise NotFound("not there", status=404)
        return copy.deepcopy(self.objects[path])

    async def apply(self, path: str, manifest: Mapping[str, Any], *, manager: str = "", force: bool = True) -> Body:
        self._called("APPLY", path)
        body = copy.deepcopy(dict(manifest))
        subresource = path.endswith("/status")
        at = path.removesuffix("/status")
        old = self.objects.get(at)
        self.version += 1
        made = {**(old or {}), **({"status": body["status"]} if subresource else body)}
        fresh = {"uid": f"uid-{self.version}", "creationTimestamp": "2027-01-15T08:00:00Z"}
        before = old["metadata"] if old else {}
        kept = {field: before.get(field, value) for field, value in fresh.items()}
        made["metadata"] = {**before, **body["metadata"], **kept, "resourceVersion": str(self.version)}
        self.objects[at] = made
        return copy.deepcopy(made)

    async def rehearse(self, path: str, manifest: Mapping[str, Any]) -> None:
        self._called("REHEARSE", path)

    async def send(self, method: str, path: str, body: Mapping[str, Any], **_: object) -> Body:
        self._called(method, path)
        if method == "DELETE":
            return self.objects.pop(path)
        if path in self.objects:
            notes = self.objects[path]["metadata"].setdefault("annotations", {})
            notes |= body["metadata"].get("annotations", {})
            return copy.deepcopy(self.objects[path])
        return {}

    def _called(self, verb: str, path: str) -> None:
        self.calls.append((verb, path))
        for part, errors in self.errors.items():
            if part in path and verb != "GET" and errors:
                raise errors.pop(0)
        for part, words in self.refuses.items():
            if part in f"{verb} {path}" and verb != "GET":
                raise Refused(words, status=403)


class Bench:
    """A reconciler on a Server, with one StreamPair; the watch is the store's own feed by the answers to writes."""

    def __init__(self, body: Body, site: Site) -> None:
        self.server, self.store, self.now = Server(), Store(), 0.0
        self.body = copy.deepcopy(body)
        self.body["metadata"] |= {"name": KEY[1], "namespace": KEY[0], "resourceVersion": "1"}
        path = f"/apis/streamserve.io/v1alpha1/namespaces/{KEY[0]}/streampairs/{KEY[1]}"
        self.server.objects[path] = copy.deepcopy(self.body)
        self.store.put(self.body)
        self.site, self.fleet, self.term = site, Silent(), 1
        self.reconciler = self.restarted(self.fleet)

    def restarted(self, fleet: Silent) -> Reconciler:
        """A process that has not decided anything yet."""
        metrics = OperatorMetrics()
        server: Any = self.server
        fence = Fence(lambda: self.now)
        fence.raise_until(1e9)
        self.asked: list[Key] = []
        self.pod_events = PodEvents(server, fence, ask=self.asked.append, now=lambda: self._utc_now().timestamp())
        return Reconciler(
            self.store,
            Applier(server, self.store, metrics, self._utc_now),
            StatusWriter(server, self.store, metrics, self._utc_now),
            fleet,
            self.pod_events,
            self.site,
            clock=lambda: self.now,
            utc_now=self._utc_now,
            term=lambda: self.term,
        )

    async def once(self) -> float | None:
        self.server.calls.clear()
        return await self.reconciler.reconcile(KEY)

    async def until_quiet(self) -> None:
        for _ in range(10):
            await self.once()
            if not self.server.writes:
                return
        raise AssertionError(f"it never rests: {self.server.writes}")

    def edit(self, **spec: Any) -> None:
        """The user's apply: another generation."""
        self.server.version += 1
        body = self.store.pair(KEY)
        assert body is not None
        body["metadata"] |= {"generation": 2, "resourceVersion": str(self.server.version)}
        body["spec"] |= spec
        stored = self.server.objects[f"/apis/streamserve.io/v1alpha1/namespaces/{KEY[0]}/streampairs/{KEY[1]}"]
        stored["metadata"]["generation"], stored["spec"] = 2, copy.deepcopy(body["spec"])
        self.store.put(body)

    def object(self, path: str) -> Body:
        return self.server.objects[f"/api/v1/namespaces/{KEY[0]}/{path}"]

    def pods(self) -> list[Body]:
        return [body for path, body in sorted(self.server.objects.items()) if "/pods/" in path]

    def store_child(self, kind: str, name: str) -> Body:
        return next(c for c in self.store.children(KEY) if (c["kind"], c["metadata"]["name"]) == (kind, name))

    def drains(self) -> set[str]:
        """Pods that were marked in the last run."""
        return {call.rpartition("/")[2] for call in self.server.writes if "PATCH" in call and "/pods/" in call}

    def put(self, pod: Body) -> None:
        """Somebody writes it."""
        self.server.version += 1
        pod["metadata"]["resourceVersion"] = str(self.server.version)
        self.store.put(copy.deepcopy(pod))

    def lose(self, pod: Body) -> None:
        """Somebody deletes it."""
        del self.server.objects[f"/api/v1/namespaces/{KEY[0]}/pods/{pod['metadata']['name']}"]
        self.store.remove(pod)

    def condition(self, kind: str) -> tuple[str, str, str]:
        body = self.store.pair(KEY)
        assert body is not None
        found = next(each for each in body["status"]["conditions"] if each["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def _utc_now(self) -> datetime:
        return datetime.fromtimestamp(1_800_000_000 + self.now, UTC)


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


async def test_a_write_that_the_server_keeps_failing_is_told_with_its_object_and_words(bench: Bench) -> None:
    bench.server.errors["/services/demo-router"] = [ServerFailed("range is full", status=500)] * 3
    for _ in range(2):
        with pytest.raises(ServerFailed):
            await bench.once()
    assert not any("streampairs" in call for call in bench.server.writes), "a server that restarts is no news"
    bench.now += FAILING_SECONDS
    with pytest.raises(ServerFailed):
        await bench.once()
    status, reason, message = bench.condition("Degraded")
    assert (status, reason) == ("True", "WriteFails")
    assert "Service demo-router: range is full" in message
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
