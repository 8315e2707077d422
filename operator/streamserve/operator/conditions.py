"""The conditions of a StreamPair: what each says, decided from one step, and when its time changes.

    Available             True: at least one lane takes traffic, and a router is there to send it
    Ready                 True: every wanted lane of the current revision does, whole; the one to wait for
    Progressing           True: something is under way; False: nothing is left to do, or it cannot go on (reason)
    PrefillReady          True: every wanted prefill pod of the current revision is ready
    DecodeReady           the same for decode
    ConfigApplied         True: every serving process has echoed this generation's configuration, a router is among
                          them, and no canary of it is held or has come back; while the pair is paused, the one of
                          before, where this generation asks for no other
    Degraded              True: somebody has to look; the message says at what
    SpeculationEffective  True: drafting is under way on some lane; False: it is off in what is in force everywhere, or
                          its law has failed; Unknown: no word yet

Each is a function from the facts to (status, reason, message). `transitions` compares with what is stored: a time
changes with its status only, and an event is worth telling when status or reason did. Messages are cut to a length
that a terminal can show; the first cause is at their front.

A router is ready while it knows a lane that takes traffic, so with no lane to wait for none is asked for, and which of
the two is missing is told by the lanes: as long as none takes traffic, it is they.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from streamserve.contract import launch
from streamserve.contract.lanes import FAILURES_LIMIT
from streamserve.contract.runtime_config import DepthPolicyName
from streamserve.operator import naming
from streamserve.operator.desired import Desired
from streamserve.operator.diff import Step
from streamserve.operator.observe import Observed, Pod, Router, seconds_of

MAX_MESSAGE_LENGTH: Final = 1_024
OVERDUE_SECONDS: Final = 60.0
ROUTERLESS_SECONDS: Final = 120.0
"""A router has this long to be scheduled, pulled and started, and to be back where all are gone."""
STEADY_SECONDS: Final = 60.0
"""A router that has run for so long does not die of its start; it may wait for lanes for minutes."""
_BY_ECHOES: Final = ("ConfigApplied", "SpeculationEffective")
_TOLD_AT_FIRST: Final = (("Progressing", "True"), ("Degraded", "True"))


@dataclass(frozen=True, slots=True)
class Condition:
    """As in the status; `since` is RFC 3339 and empty until `transitions` fills it in."""

    type: str
    status: str
    reason: str
    message: str = ""
    generation: int = 0
    since: str = ""

    def to_status(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "status": self.status,
            "observedGeneration": self.generation,
            "lastTransitionTime": self.since,
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that conditions look at. `stored` is the status as it was last written; `now` in seconds since the
    epoch."""

    desired: Desired
    observed: Observed
    step: Step
    stored: Mapping[str, Any] = field(default_factory=dict)
    now: float = 0.0

    @property
    def unheard(self) -> bool:
        """What is stored tells of the configuration that is wanted, and nobody has been asked since: it stays."""
        told = self.stored.get("config", {}).get("generation")
        return not self.observed.asked and told == self.desired.config.id.generation

    @property
    def current(self) -> tuple[Pod, ...]:
        """Pods that belong to the wanted lanes in the wanted revision."""
        wanted = self.desired.wanted
        return tuple(
            pod
            for pod in self.observed.pods
            if pod.revision == wanted.revision and pod.lane < wanted.lanes and pod.slot in wanted.slots
        )

    def ready(self, role: str) -> int:
        return sum(pod.serves for pod in self.current if pod.slot.role == role)

    def total(self, role: str) -> int:
        return self.desired.wanted.lanes * self.desired.replicas.of(role)

    @property
    def ready_lanes(self) -> int:
        """Lanes of any revision of which a pod of each role is ready, as its kubelet says."""
        return self._lanes_with(lambda pod: pod.serves)

    @property
    def serving_lanes(self) -> int:
        """Those that routers send to, also while a kubelet is silent."""
        return self._lanes_with(lambda pod: pod.takes_requests)

    def _lanes_with(self, counts: Callable[[Pod], bool]) -> int:
        roles = [{pod.lane for pod in self.observed.pods if counts(pod) and pod.slot.role == r} for r in naming.ROLES]
        return len(set.intersection(*roles))

    @property
    def lacks_router(self) -> bool:
        """Nobody takes requests for the lanes that are wanted."""
        return self.observed.ready_routers == 0 and self.desired.wanted.lanes > 0

    @property
    def applied(self) -> tuple[int, int]:
        """(how many have, of how many): the processes that serve now, workers and routers."""
        wanted = self.desired.config.id.order
        names = serving(self.observed)
        echoes = [self.observed.echoes.get(name) for name in names]
        return sum(echo is not None and (echo.generation, echo.step) >= wanted for echo in echoes), len(names)


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """All of them, in their order."""
    degraded = _degraded(facts)
    found = (
        _available(facts),
        _ready(facts, degraded),
        _progressing(facts),
        _role(facts, "prefill"),
        _role(facts, "decode"),
        _config_applied(facts),
        degraded,
        _speculation(facts),
    )
    generation = facts.desired.pair.metadata.generation
    decided = (replace(condition, generation=generation, message=_cut(condition.message)) for condition in found)
    if not facts.unheard:
        return tuple(decided)
    kept = {old["type"]: _stored(old) for old in facts.stored.get("conditions", ()) if old["type"] in _BY_ECHOES}
    return tuple(kept.get(condition.type, condition) for condition in decided)


def refused(message: str, generation: int) -> tuple[Condition, ...]:
    """Of a spec that cannot be acted on: what runs is left as it is, and nothing is said about it."""
    return tuple(
        Condition(kind, status, "InvalidSpec", _cut(message), generation)
        for kind, status in (("Ready", "False"), ("Progressing", "False"), ("Degraded", "True"))
    )


def followed(desired: Desired, role: str, generation: int) -> Condition:
    """Of a StreamPairScaler: whether its number is the one that is taken."""
    note = "; ".join(note for note in desired.replicas.notes if note.startswith(role))
    if note:
        return Condition("Followed", "False", "Clamped", note, generation)
    return Condition("Followed", "True", "AsAsked", f"{desired.replicas.of(role)} in each lane", generation)


def serving(observed: Observed) -> list[str]:
    """The processes whose echo counts: workers that are up and stay, and every router that has answered."""
    workers = [pod.name for pod in observed.pods if pod.container_ready and not pod.leaving]
    known = {pod.name for pod in observed.pods}
    return workers + sorted(name for name in observed.echoes if name not in known)


def transitions(
    stored: Iterable[Mapping[str, Any]], found: Sequence[Condition], now: float
) -> tuple[tuple[Condition, ...], tuple[Condition, ...]]:
    """(conditions to store, those that are worth an event). Stored ones that were not decided anew are kept. What is
    said for the first time is no change: of a new StreamPair only what is under way or wrong is told."""
    before = {str(condition["type"]): condition for condition in stored}
    time = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    after: list[Condition] = []
    told: list[Condition] = []
    for condition in found:
        old = before.pop(condition.type, None)
        kept = old is not None and old.get("status") == condition.status
        after.append(replace(condition, since=str(old["lastTransitionTime"]) if old is not None and kept else time))
        changed = not kept or old is None or old.get("reason") != condition.reason
        if changed and (old is not None or (condition.type, condition.status) in _TOLD_AT_FIRST):
            told.append(after[-1])
    return (*after, *map(_stored, before.values())), tuple(told)


def _stored(old: Mapping[str, Any]) -> Condition:
    return Condition(
        type=str(old["type"]),
        status=str(old.get("status", "Unknown")),
        reason=str(old.get("reason", "")),
        message=str(old.get("message", "")),
        generation=int(old.get("observedGeneration", 0)),
        since=str(old.get("lastTransitionTime", "")),
    )


def _available(facts: Facts) -> Condition:
    wanted = facts.desired.wanted.lanes
    message = f"{facts.serving_lanes} of {wanted} lanes take traffic"
    if facts.serving_lanes and facts.lacks_router:
        return Condition("Available", "False", "NoRouterReady", f"{_without_router(facts)}; {message}")
    if facts.serving_lanes:
        return Condition("Available", "True", "LanesReady", message)
    return Condition("Available", "False", "ScaledToZero" if wanted == 0 else "NoLaneReady", message)


def _ready(facts: Facts, degraded: Condition) -> Condition:
    parts = [f"{facts.ready(role)} of {facts.total(role)} {role} pods" for role in naming.ROLES]
    message = f"{' and '.join(parts)} of revision {facts.desired.wanted.revision} are ready"
    whole = all(facts.ready(role) == facts.total(role) for role in naming.ROLES)
    if whole and len(facts.observed.pods) == len(facts.current) and not facts.lacks_router:
        return Condition("Ready", "True", "LanesReady", message)
    if degraded.status == "True":
        return Condition("Ready", "False", degraded.reason, f"{degraded.message}; {message}")
    if whole and facts.lacks_router:
        return Condition("Ready", "False", "NoRouterReady", f"{_without_router(facts)}; {message}")
    return Condition("Ready", "False", "LanesNotReady" if not whole else "LanesLeaving", message)


def _progressing(facts: Facts) -> Condition:
    now = facts.step.rollout
    if facts.desired.pair.spec.paused:
        return Condition("Progressing", "False", "Paused", "spec.paused is true: nothing is written but this status")
    if now.halted:
        return Condition("Progressing", "False", "RolloutHalted", f"{now.halted}; undo the change or mend it")
    if now.needs_surge:
        return Condition(
            "Progressing",
            "False",
            "NeedsSurge",
            "the only lane would have to stop: set spec.update.maxSurge to 1, or maxUnavailable to accept the gap",
        )
    if facts.step.leftover:
        return Condition(
            "Progressing", "True", "LeftoverObjects", f"waits until {_listed(facts.step.leftover)} is gone"
        )
    if now.done:
        return Condition("Progressing", "False", "Complete", "every lane is as wanted")
    outdated = sum(lane.revision != facts.desired.wanted.revision for lane in now.lanes)
    if outdated:
        message = f"{outdated} of {len(now.lanes)} lanes are of another revision"
        return Condition("Progressing", "True", "RolloutUnderWay", message)
    return Condition("Progressing", "True", "LanesStarting", f"{facts.serving_lanes} lanes take traffic")


def _role(facts: Facts, role: str) -> Condition:
    kind, ready, total = f"{role.capitalize()}Ready", facts.ready(role), facts.total(role)
    message = f"{ready} of {total} pods are ready"
    notes = [note for note in facts.desired.replicas.notes if note.startswith(role)]
    message = "; ".join((message, *notes))
    if ready < total:
        return Condition(kind, "False", "PodsNotReady", message)
    return Condition(kind, "True", "ReplicasClamped" if notes else "PodsReady", message)


def _config_applied(facts: Facts) -> Condition:
    applied, of = facts.applied
    generation = facts.desired.config.id.generation
    message = f"{applied} of {of} have applied generation {generation}"
    refusing = [
        f"{name}: {echo.error}"
        for name in serving(facts.observed)
        if (echo := facts.observed.echoes.get(name)) is not None and echo.error
    ]
    canary = facts.desired.canary.not_applied
    whole = bool(of) and applied == of
    if whole and canary is None and not facts.lacks_router:
        return Condition("ConfigApplied", "True", "Applied", message)
    if refusing:
        return Condition("ConfigApplied", "False", "ConfigRefused", f"{'; '.join(refusing)}; {message}")
    if canary is not None:
        reason, said = canary
        return Condition("ConfigApplied", "False", reason, f"{said}; {message}")
    if whole:
        return Condition("ConfigApplied", "False", "NoRouterReady", f"{_without_router(facts)}; {message}")
    return Condition("ConfigApplied", "False", "Applying" if of else "NobodyServes", message)


def _degraded(facts: Facts) -> Condition:
    """The first cause that somebody has to see to: what blocks us, what cannot start, what keeps dying."""
    if facts.step.refused:
        message = f"{_listed(facts.step.refused)} exists and is not ours: delete or rename it"
        return Condition("Degraded", "True", "ForeignObject", message)
    for (kind, name), message in facts.observed.rejected.items():
        return Condition("Degraded", "True", "WriteRefused", f"{kind} {name} is refused by the API server: {message}")
    if facts.observed.failing:
        return Condition("Degraded", "True", "WriteFails", f"the API server fails: {facts.observed.failing}")
    staying = [pod for pod in facts.observed.pods if not pod.leaving]
    routers = [router for router in facts.observed.routers if not router.leaving]
    for reason, said in _CAUSES.items():
        processes: tuple[Pod | Router, ...] = (*staying, *routers)
        for each in processes:
            if cause := said(each, facts.now):
                return Condition("Degraded", "True", reason, f"pod {each.name}: {cause}")
    if facts.observed.routers_refused:
        message = f"the router's Deployment can make no pod: {facts.observed.routers_refused}"
        return Condition("Degraded", "True", "RouterPodsRefused", message)
    if facts.lacks_router and (left := _routerless_in_seconds(facts.observed, facts.now)) is not None and left <= 0.0:
        return Condition("Degraded", "True", "NoRouterReady", _without_router(facts))
    for pod in facts.observed.pods:
        if (left := _overdue_in_seconds(pod, facts.now)) is not None and left <= 0.0:
            return Condition("Degraded", "True", "PodNotGone", _not_gone(pod))
    unheard = [pod for pod in staying if pod.node_is_silent]
    if unheard:
        nodes = ", ".join(sorted({pod.node or "(none)" for pod in unheard}))
        message = f"node {nodes} does not report; pod {unheard[0].name} takes requests all the same"
        return Condition("Degraded", "True", "NodeSilent", message)
    waiting = [pod for pod in staying if pod.container_ready and not pod.ready]
    if facts.observed.redis_away and waiting:
        message = f"pod {waiting[0].name} runs, and no router's word on its lane arrives: Redis does not answer"
        return Condition("Degraded", "True", "RedisAway", f"{message} ({facts.observed.redis_away})")
    if facts.step.rollout.halted:
        return Condition("Degraded", "True", "RolloutHalted", facts.step.rollout.halted)
    return Condition("Degraded", "False", "AsExpected")


def overdue_in_seconds(observed: Observed, now: float) -> float | None:
    """When what is awaited will have taken too long, if it goes on: a pod that is going, a router that is not ready.
    None where nothing is awaited, or has taken too long already."""
    left = [_overdue_in_seconds(pod, now) for pod in observed.pods]
    left += [_routerless_in_seconds(observed, now), *(_steady_in_seconds(router, now) for router in observed.routers)]
    return min((each for each in left if each is not None and each > 0.0), default=None)


def _routerless_in_seconds(observed: Observed, now: float) -> float | None:
    """Until the lack of a router is worth a look; None while one is ready, or one runs and no lane is there for it.

    Counted from the latest of what may have begun it: a router that stopped being ready, or a lane that opened, which
    routers have yet to see.
    """
    routers = [router for router in observed.routers if not router.leaving]
    open_since = [pod.gate_since_seconds for pod in observed.pods if pod.takes_requests]
    deployment = next((child for child in observed.children.values() if child.kind == "Deployment"), None)
    runs = any(router.running_since_seconds is not None for router in routers)
    if observed.ready_routers or deployment is None or (runs and not open_since):
        return None
    created = seconds_of(deployment.live["metadata"].get("creationTimestamp"))
    since = max((router.unready_since_seconds for router in routers), default=created)
    return max(since, *open_since, created) + ROUTERLESS_SECONDS - now


def _steady_in_seconds(router: Router, now: float) -> float | None:
    """Until a router that has died and runs again is one that stays up; None for others."""
    if router.ready or not router.restarts or router.running_since_seconds is None:
        return None
    return router.running_since_seconds + STEADY_SECONDS - now


def _without_router(facts: Facts) -> str:
    """What there is in place of a router that is ready."""
    routers = [router for router in facts.observed.routers if not router.leaving]
    if not routers:
        return "no router is there: its Deployment has no pod"
    running = [router.name for router in routers if router.running_since_seconds is not None]
    if running:
        return f"no router is ready: pod {running[0]} runs and does not say that it is"
    return f"no router is ready: pod {routers[0].name} does not run"


def _overdue_in_seconds(pod: Pod, now: float) -> float | None:
    """`deletion_seconds` is when its grace ends, not when it was asked to go."""
    return None if pod.deletion_seconds is None else pod.deletion_seconds + OVERDUE_SECONDS - now


def _not_gone(pod: Pod) -> str:
    assert pod.deletion_seconds is not None
    due = datetime.fromtimestamp(pod.deletion_seconds, UTC).strftime("%H:%M:%S UTC")
    held = pod.live["metadata"].get("finalizers")
    if held:
        return f"pod {pod.name} should have been gone at {due}: its finalizers hold it ({', '.join(held)})"
    return f"pod {pod.name} should have been gone at {due}: node {pod.node or '(none)'} does not say that it stopped"


def _image(pod: Pod | Router, now: float) -> str:
    return pod.stuck if "Image" in pod.stuck.partition(":")[0] else ""


def _cannot_start(pod: Pod | Router, now: float) -> str:
    return pod.stuck or pod.held_back


def _crashes(pod: Pod | Router, now: float) -> str:
    """One that has never taken traffic cannot start; one that has is let off until it dies over and over."""
    if pod.ready or pod.restarts < (FAILURES_LIMIT if pod.has_served else 1):
        return ""
    if isinstance(pod, Router) and (left := _steady_in_seconds(pod, now)) is not None and left <= 0.0:
        return ""
    times = "once" if pod.restarts == 1 else f"{pod.restarts} times"
    return f"restarted {times}; its last words: {pod.last_words or 'none'}"


def _unschedulable(pod: Pod | Router, now: float) -> str:
    return pod.unschedulable


_CAUSES: Final[dict[str, Callable[[Pod | Router, float], str]]] = {
    "ImagePullFailed": _image,
    "ContainerCannotStart": _cannot_start,
    "CrashLoop": _crashes,
    "Unschedulable": _unschedulable,
}


def _speculation(facts: Facts) -> Condition:
    """By the configuration in force on each lane: during a canary and after one that came back it is not the spec's."""
    kind = "SpeculationEffective"
    lanes = {*range(facts.desired.wanted.lanes), *(pod.lane for pod in facts.observed.pods)}
    drafting = {lane for lane in lanes if _policy(facts, lane) is not DepthPolicyName.OFF}
    if not drafting and facts.desired.config.speculation.policy is DepthPolicyName.OFF:
        return Condition(kind, "False", "SpeculationOff", "what is in force has no method, or policy Off")
    decodes = [pod for pod in facts.observed.pods if pod.slot.role == "decode" and pod.container_ready]
    reported = [pod for pod in decodes if pod.name in facts.observed.echoes]
    echoes = [(pod.name, facts.observed.echoes[pod.name]) for pod in reported if pod.lane in drafting]
    fallen = [name for name, echo in echoes if echo.speculation_fallback]
    if fallen:
        return Condition(
            kind, "False", "FallenBack", f"{', '.join(fallen)} hold one depth, the law failed; see their logs"
        )
    if not echoes:
        return Condition(kind, "Unknown", "NoSignals", "no decode worker that is to draft has reported")
    others = len(reported) - len(echoes)
    said = f", {others} are of lanes with policy Off" if others else ""
    return Condition(kind, "True", "Drafting", f"{len(echoes)} decode workers draft{said}")


def _policy(facts: Facts, lane: int) -> DepthPolicyName:
    return facts.desired.config.for_lane(launch.lane_name(lane)).speculation.policy


def _listed(keys: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{kind} {name}" for kind, name in keys)


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
