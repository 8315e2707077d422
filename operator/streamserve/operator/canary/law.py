"""Whether a new speculation setting goes to all lanes, to a few for a trial, stays there, or comes back.

    nothing stored, or of another pair      to all lanes at once
    an older generation than the stored     nothing: somebody reads an old cache
    policy Off                              to all lanes at once, past any canary: the kill switch
    what the control lanes obey already     to all lanes: nothing new, or an edit that was taken back during its hold
    canaryLanes 0, or holdSeconds 0         to all lanes at once
    the same question, rolled back before   stays rolled back
    the same question, held now             judged, see below
    any other                               canary lanes try it; with fewer than two lanes, to all at once

    judged   hold on                        the routers' records have not been read yet
             roll back  CanaryWorse         holdSeconds and minRequests are met, and the upper 95 % bound of the ratio
                                            of goodputs is below rollbackBelowPercent
             promote                        the same two, and the lower bound is not below it
             roll back  CanaryInconclusive  10 holdSeconds are over, or no lane is left on one of the sides
             hold on                        otherwise

The bounds are `compare`'s. They are for ten looks, one at the end of each holdSeconds, so a reconcile judges by the
minutes that had ended, and whose records had ARRIVAL_SECONDS to come, at the last one: whoever reconciles in between,
or again after a restart, sees the same figures. `minRequests` counts on each side.

Only speculation is tried: everything else that is hot in a generation goes to all lanes at once, whatever becomes of
the canary.

The first lanes are the canaries, canaryLanes of them but always one less than there are: scaling down takes the last
lanes first. During a hold they stay the same ones; a lane that is added is control.

While the pair is paused nothing is written: what is remembered stays in force and keeps its reason, nobody is judged,
no hold begins, and whatever else the spec asks for waits (`paused`).

A configuration whose content changes gets a higher (generation, step) than the stored one and than any that a process
has echoed; one whose content does not change is never written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from streamserve.contract.runtime_config import Canary, DepthPolicyName, RuntimeConfig, SpeculationConfig
from streamserve.contract.streampair.policies import Rollout
from streamserve.operator.canary.compare import LOOKS, Comparison, compare
from streamserve.operator.canary.evidence import Records, minutes
from streamserve.operator.canary.memory import (
    MAX_DETAIL_LENGTH,
    Holding,
    Memory,
    RollBackReason,
    RolledBack,
    Settled,
    State,
    question,
)

HOLDING: Final = "CanaryHolding"
PAUSED: Final = "Paused"
MAX_HOLDS: Final = LOOKS
AGAIN_SECONDS: Final = 60.0
UNREAD_SECONDS: Final = 5.0
ARRIVAL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the spec asks for: `config` under its generation, as it would be for all lanes; `lanes` in their order; of
    which `revision` their pods are, and for which depth (`maxDepth`) their engines are built."""

    config: RuntimeConfig
    rules: Rollout
    lanes: tuple[str, ...]
    revision: str
    max_depth: int


class AllReason(StrEnum):
    FIRST = "First"
    KILL_SWITCH = "KillSwitch"
    NOTHING_NEW = "NothingNew"
    NO_CANARY = "NoCanaryAskedFor"
    NOTHING_TO_COMPARE = "NothingToCompareWith"


@dataclass(frozen=True, slots=True)
class ToAll:
    reason: AllReason


@dataclass(frozen=True, slots=True)
class Outdated:
    """The spec is older than what is stored: nothing is done."""


@dataclass(frozen=True, slots=True)
class Hold:
    """`again_seconds`: judge again after that long, whatever happens."""

    detail: str
    again_seconds: float


@dataclass(frozen=True, slots=True)
class Promote:
    detail: str


@dataclass(frozen=True, slots=True)
class RollBack:
    reason: RollBackReason
    detail: str


@dataclass(frozen=True, slots=True)
class StayBack:
    """Rolled back before, and asked for again unchanged."""

    reason: RollBackReason
    detail: str


@dataclass(frozen=True, slots=True)
class Waits:
    """The pair is paused, and asks for something else than what is in force."""

    detail: str


Verdict = ToAll | Outdated | Hold | Promote | RollBack | StayBack | Waits


@dataclass(frozen=True, slots=True)
class Outcome:
    """`memory` is what the ConfigMap and Redis shall hold from now on."""

    verdict: Verdict
    memory: Memory
    comparison: Comparison | None = None

    @property
    def not_applied(self) -> tuple[str, str] | None:
        """(reason, message) of ConfigApplied where the canary keeps it False."""
        match self.verdict:
            case Hold(detail):
                return HOLDING, detail
            case RollBack(reason, detail) | StayBack(reason, detail):
                return reason.value, detail
            case Waits(detail):
                return PAUSED, detail
            case _:
                return None


def decide(
    wanted: Wanted, memory: Memory | None, records: Records | None, now: float, *, echoed: tuple[int, int] = (-1, -1)
) -> Outcome:
    """`now` in seconds since the epoch. `records` None: they have not been read. `echoed`: the highest (generation,
    step) that any process of the pair has applied, which a memory that was lost must not fall behind."""
    target, rules = wanted.config.speculation, wanted.rules
    if memory is None or memory.config.id.uid != wanted.config.id.uid:
        return _to_all(wanted, None, AllReason.FIRST, echoed)
    if wanted.config.id.generation < memory.config.id.generation:
        return Outcome(Outdated(), memory)
    if target.policy is DepthPolicyName.OFF:
        return _to_all(wanted, memory, AllReason.KILL_SWITCH, echoed)
    control = _fitted(memory.config.speculation, wanted.max_depth)
    if target == control:
        return _to_all(wanted, memory, AllReason.NOTHING_NEW, echoed)
    if rules.canary_lanes == 0 or rules.hold_seconds == 0:
        return _to_all(wanted, memory, AllReason.NO_CANARY, echoed)
    asked = question(target, rules, wanted.revision)
    match memory.state:
        case RolledBack(refused, reason, detail) if refused == asked:
            config = _with(wanted, control, None)
            return Outcome(StayBack(reason, detail), _numbered(config, memory, memory.state, echoed))
        case Holding(held) as state if held == asked:
            return _judge(wanted, control, memory, state, records, now, echoed)
        case _:
            return _begin(wanted, control, memory, asked, now, echoed)


def paused(wanted: Wanted, memory: Memory | None) -> Outcome:
    """Of a pair that is paused. The memory is returned as it is: its generation is the one that processes have."""
    if memory is None or memory.config.id.uid != wanted.config.id.uid:
        return Outcome(Waits("spec.paused is true: no configuration is written"), Memory(wanted.config, Settled()))
    if isinstance(memory.state, Holding):
        said = "spec.paused is true: the canary lanes go on with what they try and are not judged"
        return Outcome(Hold(said, AGAIN_SECONDS), memory)
    asked, in_force = wanted.config.model_copy(update={"id": memory.config.id}), memory.config
    if asked == in_force:
        return Outcome(ToAll(AllReason.NOTHING_NEW), memory)
    match memory.state:
        case RolledBack(refused, reason, detail) if (
            refused == question(asked.speculation, wanted.rules, wanted.revision)
            and asked.model_copy(update={"speculation": in_force.speculation}) == in_force
        ):
            return Outcome(StayBack(reason, detail), memory)
        case _:
            return Outcome(Waits("spec.paused is true: what it asks for now waits"), memory)


def _to_all(wanted: Wanted, memory: Memory | None, reason: AllReason, echoed: tuple[int, int]) -> Outcome:
    config = _with(wanted, wanted.config.speculation, None)
    return Outcome(ToAll(reason), _numbered(config, memory, Settled(), echoed))


def _begin(
    wanted: Wanted, control: SpeculationConfig, memory: Memory, asked: str, now: float, echoed: tuple[int, int]
) -> Outcome:
    canaries = wanted.lanes[: min(wanted.rules.canary_lanes, len(wanted.lanes) - 1)] if wanted.lanes else ()
    if not canaries:
        return _to_all(wanted, memory, AllReason.NOTHING_TO_COMPARE, echoed)
    tried = Canary(lanes=canaries, speculation=wanted.config.speculation)
    after = _numbered(_with(wanted, control, tried), memory, Settled(), echoed)
    state = Holding(asked, now, after.config.id.order)
    hold = Hold(_progress(wanted, canaries, 0.0, Comparison()), _again(wanted.rules, 0.0))
    return Outcome(hold, Memory(after.config, state), Comparison())


def _judge(
    wanted: Wanted,
    control: SpeculationConfig,
    memory: Memory,
    state: Holding,
    records: Records | None,
    now: float,
    echoed: tuple[int, int],
) -> Outcome:
    canary = memory.config.canary
    if canary is None:
        raise AssertionError("recall lets no hold without a canary pass")
    rules, elapsed = wanted.rules, max(0.0, now - state.since_seconds)
    look = min(MAX_HOLDS, int(elapsed // max(1, rules.hold_seconds)))
    looked_at = state.since_seconds + look * rules.hold_seconds - ARRIVAL_SECONDS
    known = minutes(records or {}, wanted.config.id.uid, state.first, canary.lanes)
    found = compare([minute for minute in known if look == 0 or minute.ends_seconds <= looked_at], look)
    said = _progress(wanted, canary.lanes, elapsed, found)
    if not set(wanted.lanes) & set(canary.lanes) or not set(wanted.lanes) - set(canary.lanes):
        why = f"no lane is left to compare with: {said}"
        return _back(wanted, control, memory, state, RollBackReason.INCONCLUSIVE, why, found, echoed)
    if records is None:
        config = _with(wanted, control, canary)
        unread = f"{said}; the routers' records have not been read yet"
        return Outcome(Hold(unread, UNREAD_SECONDS), _numbered(config, memory, state, echoed), found)
    # Before the first look nothing is bounded, so holdSeconds is met by whatever passes here.
    if found.requests >= rules.min_requests:
        if found.high * 100 < rules.rollback_below_percent:
            return _back(wanted, control, memory, state, RollBackReason.WORSE, said, found, echoed)
        if found.bounded and found.low * 100 >= rules.rollback_below_percent:
            config = _with(wanted, wanted.config.speculation, None)
            return Outcome(Promote(said), _numbered(config, memory, Settled(), echoed), found)
    if elapsed >= MAX_HOLDS * rules.hold_seconds:
        return _back(wanted, control, memory, state, RollBackReason.INCONCLUSIVE, said, found, echoed)
    config = _with(wanted, control, canary)
    return Outcome(Hold(said, _again(rules, elapsed)), _numbered(config, memory, state, echoed), found)


def _back(
    wanted: Wanted,
    control: SpeculationConfig,
    memory: Memory,
    state: Holding,
    reason: RollBackReason,
    said: str,
    found: Comparison,
    echoed: tuple[int, int],
) -> Outcome:
    detail = said[:MAX_DETAIL_LENGTH]
    config = _with(wanted, control, None)
    after = _numbered(config, memory, RolledBack(state.question, reason, detail), echoed)
    return Outcome(RollBack(reason, detail), after, found)


def _fitted(speculation: SpeculationConfig, max_depth: int) -> SpeculationConfig:
    """What was in force, for engines that may have been built for less since: they would refuse a deeper one."""
    depths = {name: min(getattr(speculation, name), max_depth) for name in ("min_depth", "max_depth", "fixed_depth")}
    return speculation.model_copy(update=depths)


def _with(wanted: Wanted, speculation: SpeculationConfig, canary: Canary | None) -> RuntimeConfig:
    return wanted.config.model_copy(update={"speculation": speculation, "canary": canary})


def _numbered(config: RuntimeConfig, memory: Memory | None, state: State, echoed: tuple[int, int]) -> Memory:
    """The stored identity for the same content of the same generation, else the next that supersedes all known."""
    generation = config.id.generation
    before = memory.config if memory is not None and memory.config.id.uid == config.id.uid else None
    floor = max(echoed, before.id.order if before is not None else (-1, -1))
    if before is not None and before.id.order == floor and before.id.generation == generation:
        same = config.model_copy(update={"id": before.id})
        if same == before:
            return Memory(before, state)
    step = floor[1] + 1 if floor[0] == generation else 0
    return Memory(config.model_copy(update={"id": config.id.model_copy(update={"step": step})}), state)


def _again(rules: Rollout, elapsed: float) -> float:
    """At the end of the hold, at its limit, and once a minute between: evidence comes by the minute."""
    ends = [end - elapsed for end in (rules.hold_seconds, MAX_HOLDS * rules.hold_seconds) if end > elapsed]
    return min([AGAIN_SECONDS, *ends])


def _progress(wanted: Wanted, canaries: tuple[str, ...], elapsed: float, found: Comparison) -> str:
    """In words, for the condition: what is tried, what is known, what is missing."""
    rules = wanted.rules
    # Whole minutes, or every reconcile of a hold would have something new to write.
    since = int(elapsed // AGAIN_SECONDS * AGAIN_SECONDS)
    tried = f"{', '.join(canaries)} {'tries' if len(canaries) == 1 else 'try'} the new speculation for {since} s"
    if found.bounded:
        known = (
            f"goodput is {found.ratio:.1%} of the other lanes', 95 % bounds {found.low:.1%} and {found.high:.1%}, "
            f"from {found.canary_requests} and {found.control_requests} requests in {found.minutes} minutes"
        )
    else:
        known = (
            f"{found.canary_requests} requests there and {found.control_requests} on the other lanes in "
            f"{found.minutes} minutes bound nothing yet"
        )
    limit = MAX_HOLDS * rules.hold_seconds
    rule = f"wanted: at least {rules.rollback_below_percent} %, {rules.min_requests} requests on each side"
    return f"{tried}: {known}; {rule}, after {rules.hold_seconds} s and before {limit} s"
