"""Thousands of StreamPairs that have been served for long, put on an API server at once.

The operator's own creation of ten thousand takes most of an hour on two cores, and is measured with fewer. Here each
child is what the operator's core decides for an empty namespace, applied as the operator applies it, and each pod is
marked as running and ready in one write, and the status is what the core says of that. What this did differently, and
the configurations in Redis, an operator mends on its first run: let one run until it rests before anything is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from tests.support.api_server import Answer, ApiServer
from tests.support.operator_bench import SPEC, STRATEGIC

from benchkit.played_fleet import ROUTERS_READY, running
from benchkit.results import BenchError, say
from streamserve.contract.lane_word import READY, LaneReport, LaneWord
from streamserve.contract.streampair import API_VERSION, KIND
from streamserve.operator import naming
from streamserve.operator.actions import Apply
from streamserve.operator.decide import decide
from streamserve.operator.edge.resources import BY_KIND
from streamserve.operator.naming import FIELD_MANAGER
from streamserve.operator.observe import Echo, observe
from streamserve.operator.site import Site

HANDS: Final = 6
APPLY: Final = "application/apply-patch+yaml"
AS_OURS: Final = f"fieldManager={FIELD_MANAGER}&force=true"
Body = dict[str, Any]


def load(server: ApiServer, namespace: str, names: Iterable[str], site: Site) -> None:
    """Raises BenchError with the server's words."""
    here = threading.local()
    done = 0
    counting = threading.Lock()

    def one(name: str) -> None:
        nonlocal done
        if not hasattr(here, "server"):
            here.server = replace(server, _connection=None, _children=[], _logs=[])
        _pair(here.server, namespace, name, site)
        with counting:
            done += 1
            if done % 500 == 0:
                say(f"loaded {done}")

    with ThreadPoolExecutor(HANDS) as hands:
        for _ in hands.map(one, names):
            pass


def _pair(server: ApiServer, namespace: str, name: str, site: Site) -> None:
    wanted = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": SPEC,
    }
    body = _taken(server.call("POST", BY_KIND[KIND].path(namespace), wanted)).body
    uid = body["metadata"]["uid"]
    decision = decide(body, site, observe(name, uid, ()), time.time())
    made: list[Body] = []
    for action in decision.actions:
        if not isinstance(action, Apply):
            raise BenchError(f"the core wants more than objects of an empty namespace: {action}")
        path = BY_KIND[action.kind].path(namespace, action.name)
        found = _taken(server.call("PATCH", f"{path}?{AS_OURS}", action.manifest, APPLY)).body
        if action.kind == "Pod":
            status = {"status": running(gate="True")}
            found = _taken(server.call("PATCH", f"{path}/status?fieldManager={FIELD_MANAGER}", status, STRATEGIC)).body
        if action.kind == "Deployment":
            found = _taken(server.call("PATCH", f"{path}/status", ROUTERS_READY, STRATEGIC)).body
        made.append(found)
    assert decision.config is not None
    echo = Echo(*decision.config.id.order)
    pods = [each["metadata"]["name"] for each in made if each["kind"] == "Pod"]
    places = [place for pod in pods if (place := naming.place_of(name, pod)) is not None]
    lanes = {f"lane-{lane}": LaneReport(state=READY, revision=revision) for lane, _, revision in places}
    now = observe(name, uid, made, lanes=LaneWord(lanes=lanes), echoes=dict.fromkeys(pods, echo))
    after = decide(body, site, now, time.time())
    if after.actions or after.status is None:
        raise BenchError(f"what was loaded is not what the core wants: {after.actions}")
    said = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "status": after.status,
    }
    path = BY_KIND[KIND].path(namespace, name, "status")
    _taken(server.call("PATCH", f"{path}?{AS_OURS}", said, APPLY))


def _taken(answer: Answer) -> Answer:
    if not answer.ok:
        raise BenchError(f"the API server has refused what the bench loads: {answer.body}")
    return answer
