"""One StreamPair, once: gather what is known, let the core decide, carry it out, say it.

    gather → decide → ConfigMap → what goes by other ways (configuration, drains, acknowledgements)
                    → the other actions → status → events

Once its ConfigMap holds a configuration it goes to the processes, whatever becomes of the other writes: nobody's quota
or webhook delays a kill switch. Not before: a leader that comes after this one would not know of it, and might give its
number to another. (A ConfigMap that the server refuses for good holds nothing up: Redis is then the only way there is.)

A run that wrote anything is followed by another at once, which sees what it made and finds nothing left to do.

What is kept between two runs is only what a run found out at the API server and no watch shows: objects under our
names that are not in the cache, and writes that were refused for good or keep failing. They are looked at again after a
while. And the configuration that was decided, for the case that the ConfigMap does not hold it, by a hand or for good:
each run would number it anew. In another term of the fence another leader may have decided since, and it is not
believed any more; nor are failures, for where nobody could renew the Lease nothing answered, and that is no write's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from streamserve.contract import runtime_config
from streamserve.contract.lane_word import LaneWord
from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply
from streamserve.operator.canary.evidence import Records
from streamserve.operator.canary.memory import Memory, notes_of, recall
from streamserve.operator.decide import Decision, decide
from streamserve.operator.edge.apply import Applier, Carried
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import Failing
from streamserve.operator.edge.pod_events import PodEvents
from streamserve.operator.edge.status_writer import StatusWriter
from streamserve.operator.edge.store import Key, Store
from streamserve.operator.naming import Manifest
from streamserve.operator.observe import Echo, Observed, observe
from streamserve.operator.refusals import Name, Write, holder, write_of
from streamserve.operator.site import Site
from streamserve.runtime import logs

_log = logs.get(__name__)
LOOK_AGAIN_SECONDS: Final = 10.0
REFUSED_AGAIN_SECONDS: Final = 30.0
FAILING_SECONDS: Final = 10.0
_AT_ONCE_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of a pair by other ways than the API server; see `Observed`."""

    lanes: LaneWord | None = None
    echoes: dict[str, Echo] = field(default_factory=dict)
    drained: frozenset[str] = frozenset()
    goodput: Records | None = None
    asked: bool = True
    redis_away: str = ""


class Fleet(Protocol):
    """The processes of the pairs, beside the API server."""

    def heard(self, key: Key) -> Heard: ...

    def decided(self, key: Key, decision: Decision, observed: Observed) -> None:
        """Take over what the decision means for the processes. Returns at once."""

    def forget(self, key: Key) -> None: ...


@dataclass(frozen=True, slots=True)
class _Rejection:
    message: str
    generation: int
    again_at: float


@dataclass(frozen=True, slots=True)
class _Decided:
    """As it is written, for thousands of pairs: the objects would take ten times the room."""

    config: bytes
    notes: dict[str, str]

    @classmethod
    def of(cls, memory: Memory) -> _Decided:
        return cls(runtime_config.encode(memory.config), notes_of(memory.state))

    def recalled(self) -> Memory | None:
        return recall(self.config, self.notes)


@dataclass(slots=True)
class _Memory:
    found: dict[Name, Manifest] = field(default_factory=dict)
    looked_at: float = 0.0
    rejected: dict[Write, _Rejection] = field(default_factory=dict)
    decided: _Decided | None = None
    term: int = 0
    failure: str = ""
    failing_since: float | None = None

    def failed(self, message: str, now: float) -> None:
        self.failure = message
        if self.failing_since is None:
            self.failing_since = now

    def failing(self, now: float) -> str:
        """What is worth telling: a server that restarts fails, too."""
        long = self.failing_since is not None and now - self.failing_since >= FAILING_SECONDS
        return self.failure if long else ""

    def rejected_now(self, generation: int, now: float) -> list[Write]:
        """What need not be tried again yet, in the order in which it was refused: a new spec is always tried."""
        return [write for write, said in self.rejected.items() if said.generation == generation and now < said.again_at]


class Reconciler:
    def __init__(
        self,
        store: Store,
        applier: Applier,
        writer: StatusWriter,
        fleet: Fleet,
        pod_events: PodEvents,
        site: Site,
        *,
        metrics: OperatorMetrics,
        clock: Callable[[], float],
        utc_now: Callable[[], datetime],
        term: Callable[[], int] = lambda: 0,
        knows: Callable[[str], bool] = lambda _namespace: True,
    ) -> None:
        self._store = store
        self._applier = applier
        self._writer = writer
        self._fleet = fleet
        self._pod_events = pod_events
        self._site = site
        self._metrics = metrics
        self._clock = clock
        self._utc_now = utc_now
        self._term = term
        self._knows = knows
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Returns after how many seconds to do so again, whatever happens. Raises ApiError, NotLeader."""
        if not self._knows(key[0]):
            return None  # once it is known, somebody asks
        body = self._store.pair(key)
        if body is None:
            self._memories.pop(key, None)
            self._fleet.forget(key)
            self._pod_events.forget(key)
            self._metrics.misses_lanes(key, 0)
            return None
        memory = self._memories.setdefault(key, _Memory())
        if memory.term != self._term():
            memory.term, memory.decided, memory.failing_since = self._term(), None, None
        now, generation = self._clock(), int(body["metadata"].get("generation") or 0)
        observed = self._pod_events.told(key, await self._gather(key, body, memory, now))
        decision = decide(body, self._site, observed, self._utc_now().timestamp())
        if decision.missing_lanes is not None:
            self._metrics.misses_lanes(key, decision.missing_lanes)
        refused, told, carried = memory.rejected_now(generation, now), set(memory.rejected), Carried()
        try:
            await self._carry_out(key, memory, observed, decision, refused, carried)
        except Failing as error:
            memory.failed(error.message, now)
            if observed.failing:
                await self._say(body, observed, decision)
            raise
        finally:
            self._remember(memory, carried, refused, decision, generation)
        memory.failing_since = None
        if observed.failing:
            # What it would say was decided before the success.
            return _AT_ONCE_SECONDS
        overtaken = await self._say(body, observed, decision)
        news = overtaken or carried.written or carried.rejected or carried.found or told - memory.rejected.keys()
        return _earliest(
            decision.again_seconds,
            _AT_ONCE_SECONDS if news else None,
            LOOK_AGAIN_SECONDS if memory.found else None,
            REFUSED_AGAIN_SECONDS if memory.rejected else None,
        )

    async def _carry_out(
        self,
        key: Key,
        memory: _Memory,
        observed: Observed,
        decision: Decision,
        refused: Collection[Write],
        carried: Carried,
    ) -> None:
        shown, held_back = _names(observed), holder(decision.actions)
        configuration = [action for action in decision.actions if _is_configuration(action)]
        others = [action for action in decision.actions if not _is_configuration(action)]
        await self._applier.carry_out(key[0], configuration, shown, carried, held_back, refused)
        if carried.found:
            # It may hold a newer decision than this one, or be a stranger's.
            return
        self._keep(key, memory, decision)
        self._fleet.decided(key, decision, observed)
        await self._applier.carry_out(key[0], others, shown, carried, held_back, refused)

    async def _gather(self, key: Key, body: Manifest, memory: _Memory, now: float) -> Observed:
        children = list(self._store.children(key))
        shown = {naming.key_of(child) for child in children}
        for name in [name for name in memory.found if name in shown]:
            del memory.found[name]
        if memory.found and now - memory.looked_at >= LOOK_AGAIN_SECONDS:
            for name in list(memory.found):
                present = await self._applier.look(key[0], name)
                if present is None:
                    del memory.found[name]
                else:
                    memory.found[name] = present
            memory.looked_at = now
        heard = self._fleet.heard(key)
        metadata = body["metadata"]
        return observe(
            metadata["name"],
            metadata["uid"],
            [*children, *memory.found.values()],
            lanes=heard.lanes,
            echoes=heard.echoes,
            drained=heard.drained,
            goodput=heard.goodput,
            asked=heard.asked,
            redis_away=heard.redis_away,
            decided=memory.decided.recalled() if memory.decided else None,
            rejected={(kind, name): said.message for (_, kind, name), said in memory.rejected.items()},
            failing=memory.failing(now),
        )

    def _remember(
        self, memory: _Memory, carried: Carried, refused: Collection[Write], decision: Decision, generation: int
    ) -> None:
        now = self._clock()
        if carried.found:
            memory.found |= carried.found
            memory.looked_at = now
        wanted = {write_of(action) for action in decision.actions}
        memory.rejected = {write: memory.rejected[write] for write in refused if write in wanted}
        for write, message in carried.rejected.items():
            memory.rejected[write] = _Rejection(message, generation, now + REFUSED_AGAIN_SECONDS)

    def _keep(self, key: Key, memory: _Memory, decision: Decision) -> None:
        if decision.memory is None:
            return
        decided = _Decided.of(decision.memory)
        if decided != memory.decided and decision.told:
            _log.info("%s: %s", "/".join(key), decision.told)
        memory.decided = decided

    async def _say(self, body: Manifest, observed: Observed, decision: Decision) -> bool:
        """True where what was decided on has changed meanwhile."""
        said = [] if decision.status is None else [(body, decision.status)]
        said += [(observed.children[name].live, status) for name, status in decision.scalers.items()]
        overtaken = [await self._writer.write(live, status) for live, status in said]
        await self._writer.tell(body, decision.events)
        return any(overtaken)


def _is_configuration(action: Action) -> bool:
    return isinstance(action, Apply) and action.kind == "ConfigMap"


def _names(observed: Observed) -> frozenset[Name]:
    pods = (("Pod", pod.name) for pod in observed.pods)
    return frozenset((*pods, *observed.children, *observed.others))


def _earliest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)
