"""One reconcile on an API server that is a dictionary, and a watch that is the answers to its writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from streamserve.contract.runtime_config import ConfigId
from streamserve.operator.decide import Decision
from streamserve.operator.edge.apply import Applier
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, NotFound, Refused
from streamserve.operator.edge.pod_events import PodEvents
from streamserve.operator.edge.reconcile import Heard, Reconciler
from streamserve.operator.edge.status_writer import StatusWriter
from streamserve.operator.edge.store import Key, Store
from streamserve.operator.observe import Echo, Observed
from streamserve.operator.site import Site

Body = dict[str, Any]
KEY = ("llm", "demo")


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
        self.metrics = metrics = OperatorMetrics()
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
            metrics=metrics,
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

    def missing(self) -> dict[str, float]:
        """StreamPair -> lanes, as Prometheus is told."""
        return {each.labels["streampair"]: each.value for each in self.metrics.missing_lanes.collect()[0].samples}

    def condition(self, kind: str) -> tuple[str, str, str]:
        body = self.store.pair(KEY)
        assert body is not None
        found = next(each for each in body["status"]["conditions"] if each["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def _utc_now(self) -> datetime:
        return datetime.fromtimestamp(1_800_000_000 + self.now, UTC)
