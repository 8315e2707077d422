"""An operator process on a real API server, and what a cluster has beside them, played: kubelet, routers, collector.

    with OperatorBench(server, directory, namespace="a") as bench:      # a namespace of its own, Redis, no operator yet
        operator = bench.start("one")                                    # a process; kill, freeze and thaw as any other
        bench.create(lanes=2); bench.until_ready()

`Kubelet` is a thread that marks pods as running and ready when their readiness gate is true, gives them an IP, ends
those that are deleted, and speaks for the workers in Redis: it publishes their signals with the configuration that it
finds there. It also plays the router (every lane with both pods running is READY) and the garbage collector. There
are no controllers: nobody makes pods for the router's Deployment, whose status says all the same that they are ready.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from tests.support.api_server import Answer, ApiServer
from tests.support.processes import Process, RedisServer, wait_until

from streamserve.contract import lane_word, runtime_config, signals
from streamserve.contract.identity import fingerprint
from streamserve.contract.keys import LANES_TTL_MS, SIGNALS_TTL_MS, Keyspace
from streamserve.contract.lane_word import READY, LaneReport, LaneWord
from streamserve.contract.signals import Role, WorkerSignals
from streamserve.operator import naming
from streamserve.operator.edge.resources import BY_KIND, LEASE, WATCHED

Body = dict[str, Any]
PAIR = "llama"
LEASE_SECONDS = 3.0
START_SECONDS = 60.0
TOO_MANY_SECONDS = 15.0
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
SPEC: Body = {
    "model": {"name": "tiny"},
    "engine": {"kind": "Simulator"},
    "lanes": 2,
    "speculation": {"method": "Ngram", "maxDepth": 6, "depth": {"min": 0, "max": 4}},
    "update": {"drainSeconds": 5},
}
CHILDREN = [kind for kind in BY_KIND if kind != "StreamPair"]


class OperatorBench:
    """One namespace with its Redis, its operators and its kubelet."""

    def __init__(self, server: ApiServer, directory: Path, namespace: str) -> None:
        self.server = server
        self.directory = directory
        self.namespace = namespace
        self.redis = RedisServer(directory)
        self.kubelet = Kubelet(self)
        self.operators: dict[str, Process] = {}
        self.token = server.token
        self._kubeconfig = directory / "kubeconfig"
        # False where the API server goes as well: thousands of deletes are minutes.
        self.tidies = True

    def __enter__(self) -> Self:
        self.redis.start()
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self._kubeconfig.write_text(json.dumps(self._credentials()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.kubelet.stop()
        finally:
            for operator in self.operators.values():
                operator.thaw()
                operator.kill()
            self.redis.kill()
        for resource in (*WATCHED, LEASE) if self.tidies else ():
            for body in self.call("GET", resource.path(self.namespace)).body["items"]:
                self.call("DELETE", resource.path(self.namespace, body["metadata"]["name"]), {"gracePeriodSeconds": 0})

    # Operators

    def start(
        self,
        name: str,
        *arguments: str,
        with_redis: bool = True,
        server: str = "",
        everywhere: bool = False,
        within_seconds: float = START_SECONDS,
    ) -> Process:
        """An operator, once it serves its health address. `server`: a URL in the place of the API server's own.
        `everywhere`: it serves every namespace, and its Lease lies in this one."""
        ready = self.directory / f"{name}.ready.json"
        command = [
            *(sys.executable, "-m", "streamserve.operator", "--die-with-parent"),
            *("--lease-namespace" if everywhere else "--namespace", self.namespace),
            *("--worker-image", "worker:1", "--router-image", "router:1", "--metrics", "127.0.0.1:0"),
            *("--lease-seconds", f"{LEASE_SECONDS:g}", "--ready-file", str(ready)),
            *arguments,
        ]
        kubeconfig = self._kubeconfig
        if server:
            kubeconfig = self.directory / f"{name}.kubeconfig"
            kubeconfig.write_text(json.dumps(self._credentials(server)))
        environment = {"KUBECONFIG": str(kubeconfig)}
        if with_redis:
            environment["STREAMSERVE_REDIS_URL"] = self.redis.url
        process = Process(name, command, self.directory, environment, ready)
        self.operators[name] = process
        return process.start().wait_ready(within_seconds)

    def metrics(self, operator: Process) -> dict[str, float]:
        """By name and labels as they are written in the text form."""
        text = self.get(operator, "/metrics")[1]
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {row[0]: float(row[2]) for row in rows}

    def get(self, operator: Process, path: str) -> tuple[int, str]:
        address = operator.ready["metrics"]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def writes(self, operator: Process) -> float:
        return sum(
            value
            for name, value in self.metrics(operator).items()
            if name.startswith("streamserve_operator_writes_total")
        )

    def leads(self, operator: Process) -> bool:
        return self.metrics(operator)["streamserve_operator_leads"] == 1.0

    def until_leads(self, operator: Process) -> None:
        wait_until(lambda: self.leads(operator), seconds=30, what=f"{operator.name} leads", every_seconds=0.01)

    def lease(self) -> Body:
        """Its spec."""
        (lease,) = self.call("GET", LEASE.path(self.namespace)).body["items"]
        spec: Body = lease["spec"]
        return spec

    def lease_holder(self) -> str:
        """Whose the Lease is; empty for nobody's."""
        return str(self.lease().get("holderIdentity") or "")

    # Objects

    def call(self, method: str, path: str, body: Body | None = None, content: str = "") -> Answer:
        """As any client has to: asked to come back (a CRD that was replaced is served anew), it does."""
        end = time.monotonic() + TOO_MANY_SECONDS
        while True:
            with self.server.calls:
                answer = self.server.call(method, path, body, content)
            if answer.status != 429 or time.monotonic() > end:
                return answer
            time.sleep(0.1)

    def install(self, definition: Body) -> None:
        with self.server.calls:
            self.server.install(definition)

    def create(self, edits: Mapping[str, Any] | None = None, name: str = PAIR) -> Body:
        body = {
            "apiVersion": "streamserve.io/v1alpha1",
            "kind": "StreamPair",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {**SPEC, **(edits or {})},
        }
        answer = self.call("POST", BY_KIND["StreamPair"].path(self.namespace), body)
        assert answer.ok, answer.body
        return answer.body

    def edit(self, spec: Body, name: str = PAIR) -> Body:
        path = BY_KIND["StreamPair"].path(self.namespace, name)
        answer = self.call("PATCH", path, {"spec": spec}, MERGE)
        assert answer.ok, answer.body
        return answer.body

    def all(self, kind: str) -> list[Body]:
        answer = self.call("GET", BY_KIND[kind].path(self.namespace))
        assert answer.ok, answer.body
        items: list[Body] = answer.body["items"]
        return [{"kind": kind, **item} for item in items]

    def one(self, kind: str, name: str) -> Body | None:
        answer = self.call("GET", BY_KIND[kind].path(self.namespace, name))
        return answer.body if answer.ok else None

    def remove(self, kind: str, name: str) -> None:
        self.call("DELETE", BY_KIND[kind].path(self.namespace, name), {"gracePeriodSeconds": 0})

    def names(self) -> set[tuple[str, str]]:
        """Every child that exists and stays."""
        ours = (body for kind in CHILDREN for body in self.all(kind))
        return {
            naming.key_of(body)
            for body in ours
            if body["metadata"].get("labels", {}).get(naming.MANAGED_BY) == naming.MANAGER
            and "deletionTimestamp" not in body["metadata"]
        }

    def shape(self) -> dict[tuple[str, str], Body]:
        """Every child without what the server, the kubelet and the clock put there: equal in two equal fixpoints."""
        uid = (self.one("StreamPair", PAIR) or {}).get("metadata", {}).get("uid", "")
        return {naming.key_of(body): _shape(body, uid) for kind in CHILDREN for body in self.all(kind)}

    def condition(self, kind: str, name: str = PAIR) -> Body:
        body = self.one("StreamPair", name) or {}
        found = (each for each in body.get("status", {}).get("conditions", ()) if each["type"] == kind)
        return next(found, {})

    def until(self, kind: str, status: str, *, seconds: float = 60.0, reason: str = "", name: str = PAIR) -> Body:
        """Until the condition is so for the present generation."""

        def is_so() -> Body | None:
            body = self.one("StreamPair", name) or {}
            found = self.condition(kind, name)
            now = found.get("observedGeneration") == body.get("metadata", {}).get("generation")
            return found if now and found["status"] == status and reason in ("", found["reason"]) else None

        def state() -> str:
            said = (self.one("StreamPair", name) or {}).get("status")
            logs = "\n".join(f"{each.name}:\n{each.log[-3000:]}" for each in self.operators.values())
            return f"{json.dumps(said, indent=1)}\n{logs}"

        condition: Body = wait_until(
            is_so, seconds=seconds, what=f"{kind} is {status}", every_seconds=0.05, explain=state
        )
        return condition

    def until_quiet(
        self,
        operator: Process,
        *,
        seconds: float = 30.0,
        quiet_seconds: float = 1.5,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        """Until the operator has not written anything for a while. `others`: what else has to stand still."""
        end, last, since = time.monotonic() + seconds, -1.0, time.monotonic()
        while time.monotonic() - since < quiet_seconds:
            assert time.monotonic() < end, f"it never rests:\n{operator.log[-3000:]}"
            if (now := self.writes(operator) + others()) != last:
                last, since = now, time.monotonic()
            time.sleep(0.1)

    def versions(self) -> dict[tuple[str, str], str]:
        """The resourceVersion of everything of ours, the StreamPairs included: what did not change was not written."""
        bodies = (body for kind in BY_KIND for body in self.all(kind))
        return {naming.key_of(body): body["metadata"]["resourceVersion"] for body in bodies}

    def _credentials(self, server: str = "") -> Body:
        certificate = self.server.directory / "certificates" / "apiserver.crt"
        cluster = {"server": f"https://127.0.0.1:{self.server.port}", "certificate-authority": str(certificate)}
        if server:
            cluster = {"server": server}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": self.token}}],
        }


@dataclass(slots=True)
class Kubelet:
    """Turns every `every_seconds`. `holds` names pods (by prefix) that never become ready; `lost` are pods (by uid)
    whose node does not answer: nobody runs them, speaks for them or ends them."""

    bench: OperatorBench
    every_seconds: float = 0.1
    holds: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    drains: bool = True
    error: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _epoch: int = 0

    def start(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with self.bench.redis.client() as client:
                while not self._stop.wait(self.every_seconds):
                    with contextlib.suppress(redis.RedisError):
                        self._turn(client)
        except BaseException as error:
            self.error = error

    def _turn(self, client: redis.Redis) -> None:
        self._epoch += 1
        pods = self.bench.all("Pod")
        pairs = {body["metadata"]["name"]: body["metadata"]["uid"] for body in self.bench.all("StreamPair")}
        running: dict[str, dict[str, set[str]]] = {}
        for pod in pods:
            if pod["metadata"]["uid"] in self.lost:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                self.bench.remove("Pod", pod["metadata"]["name"])
                continue
            held = any(pod["metadata"]["name"].startswith(prefix) for prefix in self.holds)
            self._status(pod, up=not held)
            if not held and (place := _place(pod)) is not None:
                pair, lane, role, revision = place
                self._speak(client, pair, pairs.get(pair, ""), pod, revision)
                running.setdefault(pair, {}).setdefault(f"{lane}/{revision}", set()).add(role)
        for pair, lanes in running.items():
            self._route(client, pair, lanes)
        for deployment in self.bench.all("Deployment"):
            self._deploy(deployment)
        self._collect(set(pairs.values()))

    def _status(self, pod: Body, *, up: bool) -> None:
        """Running, and Ready once the readiness gate is true."""
        status = pod.get("status", {})
        old = {each["type"]: each["status"] for each in status.get("conditions", ())}
        ready = "True" if up and old.get(naming.LANE_READY) == "True" else "False"
        if old.get("Ready") == ready and bool(status.get("podIP")) == up:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        container: Body = {"name": "worker", "image": "i", "imageID": "i", "restartCount": 0, "ready": up}
        container["state"] = {"running": {"startedAt": now}} if up else {"waiting": {"reason": "ContainerCreating"}}
        made: Body = {
            "phase": "Running" if up else "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
                {"type": "Ready", "status": ready, "lastTransitionTime": now},
            ],
            "containerStatuses": [container],
        }
        if up:
            made |= {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        path = BY_KIND["Pod"].path(self.bench.namespace, pod["metadata"]["name"], "status")
        self.bench.call("PATCH", path, {"status": made}, STRATEGIC)

    def _deploy(self, deployment: Body) -> None:
        """A Deployment's pods are ready as soon as it is there."""
        replicas = deployment["spec"]["replicas"]
        if deployment.get("status", {}).get("readyReplicas") == replicas:
            return
        path = BY_KIND["Deployment"].path(self.bench.namespace, deployment["metadata"]["name"], "status")
        ready = {"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas}
        self.bench.call("PATCH", path, {"status": ready}, MERGE)

    def _speak(self, client: redis.Redis, pair: str, uid: str, pod: Body, revision: str) -> None:
        """The worker's signals, with the configuration that it would have taken from Redis."""
        space = Keyspace(self.bench.namespace, pair)
        stored = client.get(space.config)
        config = runtime_config.decode(stored) if isinstance(stored, bytes) else None
        taken = config is not None and config.id.uid == uid
        arguments = pod["spec"]["containers"][0]["args"]
        said = WorkerSignals(
            role=Role.PREFILL if "prefill" in arguments else Role.DECODE,
            boot_id=1,
            epoch=self._epoch,
            uid_fingerprint=fingerprint(uid),
            revision_fingerprint=fingerprint(revision),
            config_generation=config.id.generation if config is not None and taken else 0,
            config_step=config.id.step if config is not None and taken else 0,
        )
        name = arguments[arguments.index("--id") + 1]
        client.set(space.worker_signals(name), signals.encode(said), px=4 * SIGNALS_TTL_MS)

    def _route(self, client: redis.Redis, pair: str, lanes: Mapping[str, set[str]]) -> None:
        """What one router says: a lane with a pod of each role takes requests."""
        word = LaneWord(
            lanes={
                f"lane-{key.partition('/')[0]}": LaneReport(state=READY, revision=key.partition("/")[2])
                for key, roles in lanes.items()
                if roles == {"prefill", "decode"}
            }
        )
        key = Keyspace(self.bench.namespace, pair).router_lanes("00000001")
        client.set(key, lane_word.encode(word), px=2 * LANES_TTL_MS)

    def _collect(self, uids: set[str]) -> None:
        """The garbage collector: what a StreamPair owned that is gone."""
        if self._epoch % 10:
            return
        for kind in CHILDREN:
            for body in self.bench.all(kind):
                owners = body["metadata"].get("ownerReferences", [])
                if any(each["kind"] == "StreamPair" and each["uid"] not in uids for each in owners):
                    self.bench.remove(kind, body["metadata"]["name"])


def _place(pod: Body) -> tuple[str, int, str, str] | None:
    """(pair, lane, role, revision) of a worker's pod, by its labels. None also for another owner's."""
    if any(each["kind"] != "StreamPair" for each in pod["metadata"].get("ownerReferences", ())):
        return None
    pair = pod["metadata"].get("labels", {}).get(naming.PAIR, "")
    place = naming.place_of(pair, pod["metadata"]["name"]) if pair else None
    return None if place is None else (pair, place[0], place[1].role, place[2])


def _shape(body: Body, uid: str) -> Body:
    """`uid` is the pair's: another one of the same name and spec has another."""
    body = json.loads(json.dumps(body).replace(uid, "THE-PAIR")) if uid else body
    metadata = {key: body["metadata"].get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
    spec = json.dumps(body.get("spec", {}), sort_keys=True)
    spec = re.sub(r'"clusterIPs?": ("[^"]*"|\["[^"]*"\]),? ?', "", spec)
    return {"metadata": metadata, "spec": spec, "data": body.get("data")}
