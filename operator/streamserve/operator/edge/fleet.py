"""The processes of the StreamPairs, beside the API server: their configuration, echoes, lanes and drains.

    written   each configuration to Redis, at once; Redis being away stops nothing, the ConfigMap delivers
    lanes     every LANES_SECONDS, of all pairs in one look at the routers' words in Redis. While Redis is away nothing
              is known, and gates stay as they are
    echoes    of a pair that has not settled: workers by their signals in Redis, by GetState where that does not tell
              soon, routers by GetConfig; first after FIRST_SECONDS, then ever more slowly
              Of pairs that have, the signals are read every REFRESH_SECONDS: a worker may have started anew, or have
              fallen back to plain decoding
    drains    see `drains.py`
    goodput   of a pair that holds a canary, see `evidence.py`

An echo stays until its pod goes or says otherwise: silence is no news. Until a pair's processes have been asked once,
`Heard.asked` says so: an operator that starts has nothing to say of them. Only a leader writes, and only a leader asks
for echoes; a drain that was begun is asked for to its end, whoever leads. What another leader may have overtaken is not
written again: in each term of the fence a pair is decided anew before anything of it is written, and what routers and
workers said in an earlier term is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from streamserve.contract import runtime_config
from streamserve.contract.identity import fingerprint
from streamserve.contract.lane_word import LaneWord
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.contract.signals import Flags, WorkerSignals
from streamserve.operator.canary.memory import Holding
from streamserve.operator.decide import Decision
from streamserve.operator.edge.drains import Drains
from streamserve.operator.edge.evidence import Evidence
from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.members import Members, Worker, members
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.peers import Peers
from streamserve.operator.edge.reconcile import Heard
from streamserve.operator.edge.redis_link import RedisLink
from streamserve.operator.edge.redis_users import RedisUsers
from streamserve.operator.edge.store import Key, Store
from streamserve.operator.observe import Echo, Observed
from streamserve.runtime import logs
from streamserve.runtime.redis_away import AWAY
from streamserve.runtime.tasks import Tasks
from streamserve.runtime.tls import TlsFiles

LANES_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 2.0
REFRESH_SECONDS: Final = 10.0
FIRST_SECONDS: Final = 0.05
SLOWEST_SECONDS: Final = 5.0
AWAY_SECONDS: Final = 10.0
DEFECT_SECONDS: Final = 5.0
_DIRECTLY_AFTER_SECONDS: Final = 0.4
_SHARE_OF_TIME: Final = 0.1
_ASKED_AT_ONCE: Final = 32
_log = logs.get(__name__)


@dataclass(slots=True)
class _Pair:
    members: Members = field(default_factory=Members)
    wanted: ConfigId | None = None
    data: bytes = b""
    order: tuple[str, int, int] = ("", -1, -1)
    echoes: dict[str, Echo] = field(default_factory=dict)
    asking: bool = False
    asked: bool = False


class ProcessFleet:
    """Without a Redis URL nothing is read there and nothing written. `unknown`: namespaces, see `knowledge.py`."""

    def __init__(
        self,
        redis_url: str | None,
        namespaces: Sequence[str],
        tls: TlsFiles | None,
        fence: Fence,
        store: Store,
        *,
        ask: Callable[[Key], None],
        metrics: OperatorMetrics,
        rng: Random,
        clock: Callable[[], float] = time.monotonic,
        redis_users: Path | None = None,
        unknown: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._link = None if redis_url is None else RedisLink(redis_url, fence, namespaces)
        self._users = None if redis_users is None else RedisUsers(redis_users, store.inhabited, unknown, fence)
        self._peers = Peers(tls)
        self._fence = fence
        self._store = store
        self._ask = ask
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._drains = Drains(self._peers, ask)
        self._evidence = Evidence(fence, ask=ask, clock=clock)
        self._pairs: dict[Key, _Pair] = {}
        self._lanes: Mapping[Key, LaneWord] | None = None
        self._unwritten: set[Key] = set()
        self._to_write = asyncio.Event()
        self._term = fence.term
        self._tasks = Tasks("fleet")
        self._turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._away = ""
        self._away_since = 0.0
        self._told = False

    def heard(self, key: Key) -> Heard:
        self._begin_term()
        pair = self._pairs.get(key)
        lanes = None if self._lanes is None else self._lanes.get(key)
        echoes, asked = (dict(pair.echoes), pair.asked) if pair else ({}, False)
        return Heard(lanes, echoes, self._drains.finished(key), self._evidence.known(key), asked, self._trouble())

    def decided(self, key: Key, decision: Decision, observed: Observed) -> None:
        body = self._store.pair(key)
        if body is None:
            return
        self._begin_term()
        pair = self._pairs.setdefault(key, _Pair())
        pods = [child for child in self._store.children(key) if child["kind"] == "Pod"]
        paused = bool(body.get("spec", {}).get("paused"))
        pair.members = members(body["metadata"]["uid"], observed, pods)
        known = {worker.pod for worker in pair.members.workers} | {name for name, _ in pair.members.routers}
        before = dict(pair.echoes)
        pair.echoes = {name: echo for name, echo in pair.echoes.items() if name in known}
        for name, _ in pair.members.routers:
            pair.echoes.setdefault(name, Echo(0))
        if paused:
            pair.data, pair.order = b"", _Pair().order
            pair.wanted = None if observed.memory is None else observed.memory.config.id
        elif decision.config is not None:
            self._want(key, pair, decision.config)
        held = decision.memory.state if decision.memory is not None else None
        self._evidence.want(key, held.since_seconds if isinstance(held, Holding) else None)
        self._drains.want(key, pair.members, paused=paused)
        if not any(self._unsettled(pair)):
            self._asked(key, pair)
        elif not pair.asking:
            pair.asking = True
            self._tasks.spawn(f"ask {'/'.join(key)}", self._settle(key, pair))
        if pair.echoes != before:
            self._ask(key)

    def forget(self, key: Key) -> None:
        self._pairs.pop(key, None)
        self._unwritten.discard(key)
        self._evidence.want(key, None)
        self._drains.forget(key)

    async def run(self) -> None:
        """Until cancelled."""
        if self._link is None:
            _log.warning("no Redis: no lane's state can be known, so no pod becomes ready")
            return
        link = self._link
        loops = {
            "lanes": lambda: self._keep_lanes(link),
            "configurations": lambda: self._keep_written(link),
            "evidence": lambda: self._evidence.run(link, away=self._is_away),
        }
        if (users := self._users) is not None:
            loops["users"] = lambda: users.run(link, away=self._is_away)
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(_unending(name, loop), name=name)

    async def close(self) -> None:
        await self._drains.stop()
        await self._tasks.stop()
        if self._link is not None:
            await self._link.close()

    # The configuration, written

    def _want(self, key: Key, pair: _Pair, config: RuntimeConfig) -> None:
        self._begin_term()
        order = (config.id.uid, *config.id.order)
        pair.wanted = config.id
        if pair.order[0] == order[0] and order <= pair.order:
            return
        pair.order, pair.data = order, runtime_config.encode(config)
        self._unwritten.add(key)
        self._to_write.set()

    async def _keep_written(self, link: RedisLink) -> None:
        checked = self._clock()
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._to_write.wait()
            except TimeoutError:
                pass
            self._to_write.clear()
            if not self._fence.is_up:
                continue
            self._begin_term()
            try:
                await self._write(link)
                if self._clock() - checked >= CHECK_SECONDS:
                    self._unwritten |= set(await link.missing([key for key, pair in self._pairs.items() if pair.data]))
                    await self._write(link)
                    checked = self._clock()
            except AWAY as error:
                self._is_away(error)
                await asyncio.sleep(self._rng.uniform(0.2, 0.5))
            except NotLeader:
                continue

    def _begin_term(self) -> None:
        if self._term == self._fence.term:
            return
        self._term = self._fence.term
        self._unwritten.clear()
        self._lanes = None
        self._evidence.begin_term()
        for pair in self._pairs.values():
            pair.data, pair.order = b"", _Pair().order
            pair.echoes, pair.asked = {}, False

    async def _write(self, link: RedisLink) -> None:
        some = {key: pair for key in self._unwritten if (pair := self._pairs.get(key)) is not None and pair.data}
        if not some:
            return
        await link.write({key: pair.data for key, pair in some.items()})
        self._is_back()
        for key, pair in some.items():
            if pair is self._pairs.get(key):
                self._unwritten.discard(key)

    # What routers say of lanes

    async def _keep_lanes(self, link: RedisLink) -> None:
        # Begun anew after a defect, it would go by what it heard before.
        self._take_lanes(None)
        refreshed = self._clock()
        while True:
            began, term = self._clock(), self._fence.term
            if self._fence.is_up:
                try:
                    found = await link.lanes()
                    if began - refreshed >= REFRESH_SECONDS:
                        await self._refresh(link)
                        refreshed = began
                except AWAY as error:
                    self._is_away(error)
                    found = None
                else:
                    self._is_back()
                if term == self._fence.term:
                    self._begin_term()
                    self._take_lanes(found)
            took = self._clock() - began
            await asyncio.sleep(max(LANES_SECONDS, took / _SHARE_OF_TIME))

    def _take_lanes(self, found: Mapping[Key, LaneWord] | None) -> None:
        before, self._lanes = self._lanes or {}, found
        told, self._told = self._told, bool(self._trouble())
        now = found or {}
        for key in self._pairs:
            old, new = before.get(key), now.get(key)
            if self._told != told or (new is not old and new != old):
                self._ask(key)

    # Who has applied it

    async def _refresh(self, link: RedisLink) -> None:
        asked = [
            (key, pair, worker) for key, pair in self._pairs.items() for worker in pair.members.workers if worker.serves
        ]
        published = await link.signals([(key, worker.id) for key, _, worker in asked])
        for key, pair, worker in asked:
            old = pair.echoes.get(worker.pod)
            echo = echo_of(published.get((key, worker.id)), worker, pair.members.pair_uid)
            # The words of a refusal are GetState's: signals only say that there was one.
            if echo is None or old is None or (old.error and replace(old, error=echo.error) == echo):
                continue
            self._learn(key, pair, {worker.pod: echo})

    def _unsettled(self, pair: _Pair) -> tuple[list[Worker], list[tuple[str, str]]]:
        """Workers and routers that serve and have not echoed what is wanted; empty lists where all have."""
        if pair.wanted is None:
            return [], []
        wanted = pair.wanted.order

        def lacks(name: str) -> bool:
            echo = pair.echoes.get(name)
            return echo is None or (echo.generation, echo.step) < wanted

        workers = [worker for worker in pair.members.workers if worker.serves and lacks(worker.pod)]
        return workers, [router for router in pair.members.routers if lacks(router[0])]

    async def _settle(self, key: Key, pair: _Pair) -> None:
        """Ask until nobody is left to ask, or the pair is another one."""
        began, wanted, wait = self._clock(), pair.wanted, FIRST_SECONDS
        try:
            while self._pairs.get(key) is pair and self._fence.is_up:
                if pair.wanted != wanted:
                    began, wanted, wait = self._clock(), pair.wanted, FIRST_SECONDS
                workers, routers = self._unsettled(pair)
                if not workers and not routers:
                    return
                async with self._turns:
                    waited = self._clock() - began
                    found = await self._echoes(key, pair, workers, routers, waited)
                self._learn(key, pair, found)
                if waited >= _DIRECTLY_AFTER_SECONDS or not any(self._unsettled(pair)):
                    self._asked(key, pair)
                await asyncio.sleep(wait * self._rng.uniform(0.8, 1.2))
                wait = min(SLOWEST_SECONDS, 1.5 * wait)
        finally:
            pair.asking = False

    def _asked(self, key: Key, pair: _Pair) -> None:
        if not pair.asked and pair.wanted is not None:
            pair.asked = True
            self._ask(key)

    async def _echoes(
        self,
        key: Key,
        pair: _Pair,
        workers: list[Worker],
        routers: list[tuple[str, str]],
        waited_seconds: float,
    ) -> dict[str, Echo]:
        found: dict[str, Echo] = {}
        published = await self._signals(key, workers)
        directly: list[Worker] = []
        for worker in workers:
            echo = echo_of(published.get(worker.id), worker, pair.members.pair_uid)
            if echo is not None:
                found[worker.pod] = echo
            late = waited_seconds >= _DIRECTLY_AFTER_SECONDS
            if worker.address and (echo is None or echo.error or late):
                directly.append(worker)
        uid = pair.members.pair_uid
        names = [*(worker.pod for worker in directly), *(name for name, _ in routers)]
        answers = await asyncio.gather(
            *(self._peers.worker(worker.address, uid, worker.id) for worker in directly),
            *(self._peers.router(address, uid) for _, address in routers),
        )
        return found | {name: echo for name, echo in zip(names, answers, strict=True) if echo is not None}

    async def _signals(self, key: Key, workers: list[Worker]) -> dict[str, WorkerSignals]:
        if self._link is None or not workers:
            return {}
        try:
            found = await self._link.signals([(key, worker.id) for worker in workers])
        except AWAY as error:
            self._is_away(error)
            return {}
        return {worker: said for (_, worker), said in found.items()}

    def _learn(self, key: Key, pair: _Pair, found: dict[str, Echo]) -> None:
        news = {name: echo for name, echo in found.items() if pair.echoes.get(name) != echo}
        if news:
            pair.echoes |= news
            self._ask(key)

    # Redis, away and back

    def _is_away(self, error: BaseException) -> None:
        self._metrics.redis_connected.set(0)
        if self._away:
            return
        self._away, self._away_since = type(error).__name__, self._clock()
        _log.warning("Redis does not answer (%s): ConfigMaps deliver, gates stay as they are", self._away)

    def _trouble(self) -> str:
        """What is worth a condition: a Redis that starts anew is away for a moment, too."""
        if self._link is None:
            return "the operator was given none"
        return self._away if self._away and self._clock() - self._away_since >= AWAY_SECONDS else ""

    def _is_back(self) -> None:
        self._metrics.redis_connected.set(1)
        if self._away:
            _log.info("Redis answers again")
        self._away = ""


async def _unending(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """What is read was written by others: whatever it makes one of the loops raise, the process does not end of it, nor
    does each that leads next."""
    while True:
        try:
            await loop()
        except Exception:
            _log.exception("%s: a defect of ours; begun anew in %g s", name, DEFECT_SECONDS)
        await asyncio.sleep(DEFECT_SECONDS)


def echo_of(said: WorkerSignals | None, worker: Worker, pair_uid: str) -> Echo | None:
    """What a worker's signals say it has applied; None for none, or those of a predecessor of its name."""
    if said is None or not said.serves_pair(pair_uid) or said.revision_fingerprint != fingerprint(worker.revision):
        return None
    refused = bool(said.flags & Flags.CONFIG_REJECTED)
    return Echo(
        said.config_generation,
        said.config_step,
        "it refuses the configuration" if refused else "",
        bool(said.flags & Flags.SPECULATION_FALLBACK),
    )
