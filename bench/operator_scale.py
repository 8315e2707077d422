"""The operator with a thousand StreamPairs, on a real API server: `make bench-operator`.

    python bench/operator_scale.py [--quick] [--pairs 1000] [--steady-minutes 10]

etcd and kube-apiserver are real, on this machine, in memory as far as they can be; nodes, workers and routers are
played (benchkit/played_fleet.py): four pods a pair. Five figures, each from an operator process of its own but start,
steady and hot, which share one:

    create   requests to the API server per StreamPair, from its creation until it is Ready with nothing left to do
             (more than 2,000 are loaded instead: benchkit/played_world.py)
    profile  where the CPU time of a start goes, by py-spy (benchkit/cpu_profile.py)
    start    from the start of a process, everything existing, until each StreamPair was reconciled; memory and CPU then
    steady   writes (the Lease left out) and requests over the minutes given, and the CPU they take; `writes_before` are
             those from the start until then
    hot      from the edit of a depth bound to ConfigApplied, while as many others as --others change; every 0.1 s one

The API server shares the machine's cores with the operator, as it does not in a cluster: times are upper bounds.
Targets: start <= 20 s and 200 MB, steady 0 writes, hot p99 <= 2 s, for 1,000 pairs; 180 s and 600 MB for 10,000.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import psutil
from benchkit import cpu_profile, results, stats
from benchkit.results import ROOT, BenchError, say

sys.path.append(str(ROOT))
from benchkit import played_world
from benchkit.played_fleet import PlayedFleet
from tests.support.api_server import ApiServer, NoBinary
from tests.support.operator_bench import MERGE, SPEC, OperatorBench
from tests.support.processes import Process

from streamserve.contract.streampair.crd import definitions
from streamserve.operator.edge.resources import BY_KIND
from streamserve.operator.site import Site

NAMESPACE = "scale"
PAIRS = BY_KIND["StreamPair"]
LOOK_SECONDS = 0.02
REST_SECONDS = 10.0
MIB = 2**20
MOST_CREATED = 2_000
STAGES = {
    "reading lists from the API server": ("* kopf/_cogs/clients/fetching.py", "* kopf/_cogs/clients/watching.py"),
    "keeping each object as text": ("Store.put operator/edge/store.py",),
    "reading a StreamPair's objects from that": ("Store._read operator/edge/store.py",),
    "checking the spec": ("accept operator/accept.py",),
    "rendering what is wanted": ("desired operator/desired.py", "Desired.pod operator/desired.py"),
    "looking at what is there": ("observe operator/observe.py",),
    "comparing the two, the rollout": ("diff operator/diff.py",),
    "conditions and status": ("conditions operator/conditions.py", "* operator/status.py"),
    "what Redis says of the processes": ("* operator/edge/fleet.py", "* operator/edge/redis_link.py"),
    "the queue and the loop around a reconcile": ("* operator/edge/controller.py", "* operator/edge/reconcile.py"),
    "starting Python": ("* <frozen importlib._bootstrap>",),
}
Body = dict[str, Any]


@dataclass(slots=True)
class World:
    bench: OperatorBench
    pairs: int
    limit_seconds: float

    def operator(self, name: str) -> Process:
        return self.bench.start(name, within_seconds=self.limit_seconds)

    def until(self, what: str, condition: Callable[[], bool], *, every_seconds: float = 1.0) -> float:
        """Seconds until it was so. Raises BenchError."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > self.limit_seconds:
                raise BenchError(f"not within {self.limit_seconds:g} s: {what}; look at the operator's log")
            time.sleep(every_seconds)
        return time.monotonic() - began

    def reconciled(self, operator: Process) -> float:
        return _sum(self.bench.metrics(operator), 'reconcile_seconds_count{result="ok"')

    def requests(self, operator: Process) -> dict[str, float]:
        """By verb, the Lease's own among them."""
        found: dict[str, float] = {}
        for name, value in self.bench.metrics(operator).items():
            if name.startswith("streamserve_operator_api_requests_total"):
                verb = name.partition('verb="')[2].partition('"')[0]
                found[verb] = found.get(verb, 0.0) + value
        return found

    def ready(self) -> int:
        """How many are Ready and applied, asked of the API server in pages."""
        count, more = 0, ""
        while True:
            page = self.bench.call("GET", f"{PAIRS.path(NAMESPACE)}?limit=500{more}").body
            count += sum(_is(body, "Ready") and _is(body, "ConfigApplied") for body in page["items"])
            if not (token := page["metadata"].get("continue")):
                return count
            more = f"&continue={token}"

    def until_rest(self, operator: Process) -> None:
        last, since = -1.0, time.monotonic()
        end = since + self.limit_seconds
        while time.monotonic() - since < REST_SECONDS:
            if (now := self.bench.writes(operator)) != last:
                last, since = now, time.monotonic()
            if time.monotonic() > end:
                raise BenchError("the operator never rests; look at its log")
            time.sleep(1.0)


def create(world: World) -> Body:
    operator = world.operator("create")
    before = sum(world.requests(operator).values())
    began = time.monotonic()
    for number in range(world.pairs):
        world.bench.create(name=name_of(number))
        if number % 100 == 99:
            say(f"created {number + 1} of {world.pairs}")
    until_ready(world, operator)
    took = time.monotonic() - began
    world.until_rest(operator)
    requests = sum(world.requests(operator).values()) - before
    end(operator)
    return {"seconds": round(took, 1), "requests_per_pair": round(requests / world.pairs, 1)}


def settle(world: World) -> None:
    """Let an operator say what the loader did not."""
    operator = world.operator("settle")
    until_ready(world, operator)
    world.until("each was reconciled", lambda: world.reconciled(operator) >= world.pairs)
    world.until_rest(operator)
    end(operator)


def until_ready(world: World, operator: Process) -> None:
    last = -1

    def all_ready() -> bool:
        nonlocal last
        if not operator.alive:
            raise BenchError(f"the operator has ended:\n{operator.log[-3000:]}")
        if (now := world.ready()) != last:
            last = now
            say(f"ready {now} of {world.pairs}")
        return now == world.pairs

    world.until("every StreamPair is Ready", all_ready, every_seconds=5.0 if world.pairs <= MOST_CREATED else 20.0)


def end(operator: Process) -> None:
    if operator.terminate() != 0:
        raise BenchError("the operator did not end well; look at its log")


def profile(world: World, directory: Path) -> Body | None:
    """None where this user may not look into another process: the other figures do not need it."""
    operator = world.operator("profile")
    try:
        sampled = cpu_profile.Profile(operator.pid, directory)
        world.until("each was reconciled", lambda: world.reconciled(operator) >= world.pairs, every_seconds=0.5)
        raw = sampled.stop()
    except BenchError as error:
        say(f"no profile: {error}")
        return None
    finally:
        end(operator)
    return {
        "samples": sum(int(line.rpartition(" ")[2]) for line in raw.splitlines()),
        **cpu_profile.shares(raw, STAGES),
    }


def start(world: World) -> tuple[Process, Body]:
    began = time.monotonic()
    operator = world.operator("start")
    world.until("each was reconciled", lambda: world.reconciled(operator) >= world.pairs, every_seconds=0.1)
    took = time.monotonic() - began
    process = psutil.Process(operator.pid)
    times = process.cpu_times()
    memory = process.memory_info().rss
    requests = world.requests(operator)
    return operator, {
        "seconds": round(took, 2),
        "cpu_seconds": round(times.user + times.system, 2),
        "rss_mib": round(memory / MIB, 1),
        "requests_per_pair": round(sum(requests.values()) / world.pairs, 3),
        "requests": requests,
        "objects": world.bench.metrics(operator)["streamserve_operator_cached_objects"],
    }


def steady(world: World, operator: Process, seconds: float) -> Body:
    world.until_rest(operator)
    process = psutil.Process(operator.pid)
    cpu, requests, writes = process.cpu_times(), world.requests(operator), world.bench.writes(operator)
    say(f"at rest; watching for {seconds / 60:g} minutes")
    time.sleep(seconds)
    after, asked = process.cpu_times(), world.requests(operator)
    return {
        "seconds": seconds,
        "writes_before": writes,
        "writes": world.bench.writes(operator) - writes,
        "requests": {verb: asked[verb] - requests.get(verb, 0.0) for verb in asked},
        "cpu_cores": round((after.user + after.system - cpu.user - cpu.system) / seconds, 4),
        "rss_mib": round(process.memory_info().rss / MIB, 1),
    }


def hot(world: World, edits: int, others: int, rng: Random) -> Body:
    """One edit after another, each timed, while others are edited in between at ten a second."""
    server = replace(world.bench.server, _connection=None, _children=[], _logs=[])
    took: list[float] = []
    crowd = rng.sample(range(world.pairs), min(others, world.pairs // 2))
    measured = [number for number in rng.sample(range(world.pairs), world.pairs) if number not in set(crowd)]
    number = 0
    for edit in range(edits):
        name = name_of(measured[edit % len(measured)])
        path = PAIRS.path(NAMESPACE, name)
        depth = 1 + (edit // len(measured) + 1) % 4
        began = time.monotonic()
        answer = server.call("PATCH", path, {"spec": {"speculation": {"depth": {"max": depth}}}}, MERGE)
        generation = answer.body["metadata"]["generation"]
        next_other = began
        while not _is(server.call("GET", path).body, "ConfigApplied", generation):
            if time.monotonic() - began > 60.0:
                raise BenchError(f"{name} was not applied within 60 s")
            if time.monotonic() >= next_other:
                number, next_other = number + 1, next_other + 0.1
                other = PAIRS.path(NAMESPACE, name_of(crowd[number % len(crowd)]))
                body = {"spec": {"speculation": {"depth": {"max": 1 + number // len(crowd) % 4}}}}
                server.call("PATCH", other, body, MERGE)
            time.sleep(LOOK_SECONDS)
        took.append(time.monotonic() - began)
    return {
        "edits": edits,
        "others": len(crowd),
        "edits_of_others": number,
        "median_seconds": round(stats.quantile(took, 0.5), 3),
        "p99_seconds": round(stats.quantile(took, 0.99), 3),
        "max_seconds": round(max(took), 3),
    }


def name_of(number: int) -> str:
    return f"pair-{number:05d}"


def _is(body: Body, kind: str, generation: int | None = None) -> bool:
    wanted = generation or body["metadata"]["generation"]
    conditions = body.get("status", {}).get("conditions", ())
    return any(
        each["type"] == kind and each["status"] == "True" and each.get("observedGeneration", 0) >= wanted
        for each in conditions
    )


def _sum(metrics: dict[str, float], part: str) -> float:
    return sum(value for name, value in metrics.items() if part in name)


def benchmark(given: argparse.Namespace, directory: Path) -> Body:
    with ApiServer(directory / "api") as server:
        for definition in definitions().values():
            server.install(definition)
        with OperatorBench(server, directory, NAMESPACE) as bench:
            bench.tidies = False
            world = World(bench, given.pairs, given.limit_minutes * 60)
            loads = given.pairs > MOST_CREATED
            if loads:
                site = Site(worker_image="worker:1", router_image="router:1")
                played_world.load(server, NAMESPACE, map(name_of, range(world.pairs)), site)
            fleet = PlayedFleet(server, NAMESPACE, bench.redis.url, every_seconds=1.0 if loads else 0.1)
            fleet.start()
            try:
                made = None
                if loads:
                    settle(world)
                else:
                    made = create(world)
                    say(f"create: {made}")
                looked = profile(world, directory)
                say(f"profile: {looked}")
                operator, started = start(world)
                say(f"start: {started}")
                rested = steady(world, operator, given.steady_minutes * 60)
                say(f"steady: {rested}")
                edited = hot(world, given.edits, given.others, Random(given.seed))
                say(f"hot: {edited}")
            finally:
                fleet.stop()
    return {
        **results.stamp(),
        "heading": "the operator at scale, real API server on the same machine, played nodes and workers",
        "quick": given.quick,
        "pairs": given.pairs,
        "pods": given.pairs * 2 * int(SPEC["lanes"]),
        "create": made,
        "profile": looked,
        "start": started,
        "steady": rested,
        "hot": edited,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000, metavar="N", help="StreamPairs (default 1000)")
    parser.add_argument("--steady-minutes", type=float, default=10.0, metavar="M", help="at rest (default 10)")
    parser.add_argument("--edits", type=int, default=100, metavar="N", help="hot edits that are timed (default 100)")
    parser.add_argument("--others", type=int, default=100, metavar="N", help="pairs that change beside (default 100)")
    parser.add_argument("--limit-minutes", type=float, default=30.0, metavar="M", help="of each wait (default 30)")
    parser.add_argument("--seed", type=int, default=20261122, metavar="N")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="20 pairs, a minute: its figures may not be quoted")
    given = parser.parse_args()
    if given.quick:
        given.pairs, given.steady_minutes, given.edits, given.others = 20, 0.2, 10, 5
    return results.as_a_script(lambda: run(given))


def run(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
        try:
            document = benchmark(given, Path(name))
        except NoBinary as error:
            raise BenchError(str(error)) from None
    print(json.dumps({key: value for key, value in document.items() if key != "machine"}, indent=1))
    if not given.quick and not given.no_write:
        name = "operator" if given.pairs == 1_000 else f"operator-{given.pairs}"
        say(f"written: {results.write(name, document).relative_to(results.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
