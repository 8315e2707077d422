"""What thousands of StreamPairs have around them, played: kubelets, workers and routers, by writing what they would.

A watch of the pods is followed by a few threads that mark each as running, and as ready once its gate is true, and
end those that are deleted. `echo` is the workers' and routers' word in Redis: each pair's signals are written anew
when its configuration has changed, and live for hours, so that thousands of workers cost nothing while they rest.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import redis
from tests.support.api_server import ApiServer
from tests.support.operator_bench import STRATEGIC

from streamserve.contract import lane_word, runtime_config, signals
from streamserve.contract.identity import fingerprint
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import READY, LaneReport, LaneWord
from streamserve.contract.signals import Role, WorkerSignals
from streamserve.operator import naming
from streamserve.operator.edge.resources import BY_KIND

HANDS: Final = 3
ROUTERS_READY: Final = {"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}}
LIFE_MS: Final = 6 * 3_600_000
WATCH_SECONDS: Final = 300
Body = dict[str, Any]


def running(*, ready: str = "True", gate: str = "") -> Body:
    """The status of a pod whose worker runs. `gate`: the readiness gate, where this is not the operator's to say."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    said = {"PodScheduled": "True", "Ready": ready} | ({naming.LANE_READY: gate} if gate else {})
    container: Body = {"name": "worker", "image": "i", "imageID": "i", "restartCount": 0, "ready": True}
    return {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": kind, "status": is_so, "lastTransitionTime": now} for kind, is_so in said.items()],
        "containerStatuses": [{**container, "state": {"running": {"startedAt": now}}}],
    }


class PlayedFleet:
    """Of one namespace, until `stop`."""

    def __init__(self, server: ApiServer, namespace: str, redis_url: str, *, every_seconds: float) -> None:
        self._server = server
        self._namespace = namespace
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=30.0)
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[Body] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # By pair: its uid and its pods, (lane, role, revision, worker id); and the configuration it has echoed.
        self._uids: dict[str, str] = {}
        self._pods: dict[str, dict[str, tuple[int, str, str, str]]] = {}
        self._echoed: dict[str, tuple[bytes, int]] = {}
        self._routed: set[str] = set()
        self.error: BaseException | None = None
        jobs: list[Callable[[], None]] = [self._follow, self._echo, *[self._hand] * HANDS]
        self._threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Raises what a thread has died of."""
        self._stop.set()
        for thread in self._threads:
            thread.join(WATCH_SECONDS)
        if self.error is not None:
            raise self.error

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.error = error
            self._stop.set()

    def _follow(self) -> None:
        """The pods: a listing, and watches that go on where the one before was; anew where the server has forgotten."""
        path = BY_KIND["Pod"].path(self._namespace)
        context = ssl.create_default_context(cafile=str(self._server.directory / "certificates" / "apiserver.crt"))
        version = ""
        while not self._stop.is_set():
            version = version or self._list(path)
            query = f"?watch=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
            # Short, so that a stop is noticed while nothing happens.
            connection = http.client.HTTPSConnection("127.0.0.1", self._server.port, timeout=2.0, context=context)
            try:
                connection.request("GET", path + query, headers={"Authorization": f"Bearer {self._server.token}"})
                response = connection.getresponse()
                while not self._stop.is_set() and (line := response.readline()):
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        version = event["object"]["metadata"]["resourceVersion"]
                        self._known(event["type"], event["object"])
                    else:
                        version = ""
            except (TimeoutError, OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()

    def _list(self, path: str) -> str:
        """The version of the listing."""
        server = replace(self._server, _connection=None, _children=[], _logs=[])
        more = ""
        while True:
            page = server.call("GET", f"{path}?limit=500{more}").body
            for pod in page["items"]:
                self._known("ADDED", pod)
            if not (token := page["metadata"].get("continue")):
                return str(page["metadata"]["resourceVersion"])
            more = f"&continue={token}"

    def _known(self, kind: str, pod: Body) -> None:
        name = pod["metadata"]["name"]
        pair = pod["metadata"].get("labels", {}).get(naming.PAIR, "")
        place = naming.place_of(pair, name) if pair else None
        if place is None:
            return
        gone = kind == "DELETED" or "deletionTimestamp" in pod["metadata"]
        with self._lock:
            pods = self._pods.setdefault(pair, {})
            if gone:
                pods.pop(name, None)
            else:
                arguments = pod["spec"]["containers"][0]["args"]
                owner = pod["metadata"]["ownerReferences"][0]
                self._uids[pair] = owner["uid"]
                pods[name] = (place[0], place[1].role, place[2], arguments[arguments.index("--id") + 1])
        if kind != "DELETED":
            self._todo.put(pod)

    def _hand(self) -> None:
        server = replace(self._server, _connection=None, _children=[], _logs=[])
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._tend(server, self._todo.get(timeout=0.5))

    def _tend(self, server: ApiServer, pod: Body) -> None:
        path = BY_KIND["Pod"].path(self._namespace, pod["metadata"]["name"])
        if "deletionTimestamp" in pod["metadata"]:
            server.call("DELETE", path, {"gracePeriodSeconds": 0})
            return
        status = pod.get("status", {})
        old = {each["type"]: each["status"] for each in status.get("conditions", ())}
        ready = "True" if old.get(naming.LANE_READY) == "True" else "False"
        if status.get("podIP") and old.get("Ready") == ready:
            return
        server.call("PATCH", f"{path}/status", {"status": running(ready=ready)}, STRATEGIC)
        self._route(server, pod["metadata"]["labels"][naming.PAIR])

    def _route(self, server: ApiServer, pair: str) -> None:
        """What a Deployment's controller says of the pair's routers, once; no pods of theirs are made."""
        with self._lock:
            known = pair in self._routed
            self._routed.add(pair)
        if not known:
            path = BY_KIND["Deployment"].path(self._namespace, naming.child_name(pair, naming.ROUTER), "status")
            server.call("PATCH", path, ROUTERS_READY, STRATEGIC)

    def _echo(self) -> None:
        epoch = 0
        while not self._stop.wait(self._every_seconds):
            with self._lock:
                known = {pair: dict(pods) for pair, pods in self._pods.items() if pods}
                uids = dict(self._uids)
            if not known:
                continue
            epoch += 1
            stored: list[Any] = self._redis.mget([Keyspace(self._namespace, pair).config for pair in known])
            pipe = self._redis.pipeline(transaction=False)
            for (pair, pods), raw in zip(known.items(), stored, strict=True):
                now = (raw or b"", len(pods))
                if self._echoed.get(pair) != now:
                    self._echoed[pair] = now
                    self._speak(pipe, pair, uids[pair], pods, raw, epoch)
            if len(pipe):
                pipe.execute()

    def _speak(
        self,
        pipe: Any,
        pair: str,
        uid: str,
        pods: dict[str, tuple[int, str, str, str]],
        raw: bytes | None,
        epoch: int,
    ) -> None:
        space = Keyspace(self._namespace, pair)
        config = runtime_config.decode(raw) if raw else None
        taken = config is not None and config.id.uid == uid
        roles: dict[tuple[int, str], set[str]] = {}
        for lane, role, revision, worker in pods.values():
            roles.setdefault((lane, revision), set()).add(role)
            said = WorkerSignals(
                role=Role.PREFILL if role == "prefill" else Role.DECODE,
                boot_id=1,
                epoch=epoch,
                uid_fingerprint=fingerprint(uid),
                revision_fingerprint=fingerprint(revision),
                config_generation=config.id.generation if config is not None and taken else 0,
                config_step=config.id.step if config is not None and taken else 0,
            )
            pipe.set(space.worker_signals(worker), signals.encode(said), px=LIFE_MS)
        word = LaneWord(
            lanes={
                f"lane-{lane}": LaneReport(state=READY, revision=revision)
                for (lane, revision), there in roles.items()
                if there == {"prefill", "decode"}
            }
        )
        pipe.set(space.router_lanes("00000001"), lane_word.encode(word), px=LIFE_MS)
