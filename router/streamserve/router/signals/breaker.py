"""Whether a worker is asked at all: a circuit breaker as a pure table.

    state      succeeded   lost (transport)   failed (it answered)   probe answered     probe failed
    Closed     Closed      Suspect *          Closed *               Closed             Suspect *
    Suspect    Closed      Suspect            Suspect *              Closed             Suspect *
    Open       Open        Open               Open                   Open               Open
    HalfOpen   Closed      Open               Open                   Closed, on trial   Open

    *: Open when it is the third in a row. Open becomes HalfOpen when its time is over and its one probe starts.

A lost connection makes a worker Suspect at once (no new work) and a probe settles it within milliseconds; the many
streams that break with one connection are one incident. Open lasts 1 s · 2^n, at most 30 s. The last lane is never
opened for failures that a living worker reports (there is nothing better), and when it does not answer at all it is
probed each second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from streamserve.router.flowguard.view import Health

FAILURES_TO_OPEN: Final = 3
OPEN_SECONDS: Final = 1.0
MAX_OPEN_SECONDS: Final = 30.0
PROBE_SECONDS: Final = 0.1


class Event(Enum):
    SUCCEEDED = auto()
    LOST = auto()
    FAILED = auto()
    PROBE_ANSWERED = auto()
    PROBE_FAILED = auto()


@dataclass(frozen=True, slots=True)
class Closed:
    """`failures` in a row; `opens` counts how often it was open since it last served a request."""

    failures: int = 0
    opens: int = 0


@dataclass(frozen=True, slots=True)
class Suspect:
    failures: int
    opens: int
    probe_at_seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    until_seconds: float
    opens: int


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One probe is on its way."""

    opens: int


Breaker = Closed | Suspect | Open | HalfOpen


def after(state: Breaker, event: Event, now_seconds: float, *, last_lane: bool = False) -> Breaker:
    """The breaker after `event`."""
    match state:
        case Closed(failures, opens):
            return _closed(failures, opens, event, now_seconds, last_lane)
        case Suspect(failures, opens, _):
            return _suspect(state, failures, opens, event, now_seconds, last_lane)
        case Open():
            return state
        case HalfOpen(opens):
            if event is Event.SUCCEEDED:
                return Closed()
            if event is Event.PROBE_ANSWERED:
                return Closed(FAILURES_TO_OPEN - 1, opens)
            return _open(opens, now_seconds, last_lane)


def _closed(failures: int, opens: int, event: Event, now_seconds: float, last_lane: bool) -> Breaker:
    if event is Event.SUCCEEDED:
        return Closed()
    if event is Event.PROBE_ANSWERED:
        return Closed(failures, opens)
    failures += 1
    if event is Event.FAILED:
        return _after_failure(failures, opens, now_seconds, last_lane)
    if failures >= FAILURES_TO_OPEN and not last_lane:
        return _open(opens, now_seconds, last_lane)
    return Suspect(min(failures, FAILURES_TO_OPEN - 1), opens, now_seconds)


def _suspect(state: Suspect, failures: int, opens: int, event: Event, now_seconds: float, last_lane: bool) -> Breaker:
    match event:
        case Event.SUCCEEDED:
            return Closed()
        case Event.LOST:
            return state
        case Event.PROBE_ANSWERED:
            return Closed(failures, opens)
        case Event.FAILED if last_lane:
            return state
    failures += 1
    if failures >= FAILURES_TO_OPEN:
        return _open(opens, now_seconds, last_lane)
    return Suspect(failures, opens, now_seconds + PROBE_SECONDS * 2.0**failures)


def _after_failure(failures: int, opens: int, now_seconds: float, last_lane: bool) -> Breaker:
    if failures < FAILURES_TO_OPEN:
        return Closed(failures, opens)
    if last_lane:
        return Closed(FAILURES_TO_OPEN - 1, opens)
    return _open(opens, now_seconds, last_lane)


def _open(opens: int, now_seconds: float, last_lane: bool) -> Open:
    seconds = OPEN_SECONDS if last_lane else min(MAX_OPEN_SECONDS, OPEN_SECONDS * 2.0 ** min(opens, 10))
    return Open(now_seconds + seconds, opens + 1)


def probe_due(state: Breaker, now_seconds: float) -> bool:
    """True when somebody should ask the worker whether it lives."""
    match state:
        case Suspect(_, _, probe_at_seconds):
            return now_seconds >= probe_at_seconds
        case Open(until_seconds, _):
            return now_seconds >= until_seconds
    return False


def probing(state: Breaker) -> Breaker:
    """The breaker while its probe runs."""
    return HalfOpen(state.opens) if isinstance(state, Open) else state


def health(state: Breaker) -> Health:
    match state:
        case Closed():
            return Health.OK
        case Suspect():
            return Health.SUSPECT
    return Health.CIRCUIT_OPEN
