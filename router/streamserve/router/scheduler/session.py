"""One request from admission to its last token: events in, actions out, no clock and no socket.

    Queued ─Admitted→ Picking ─Picked→ Prefilling ─PrefillDone→ HandingOff ─Chunk→ Decoding ─Chunk(finished)→ Delivering
                         ↑  └────────── local route ──────────────↑  │                               Delivered ↓
                         └──── failure before the first token ───────┘ (failover.py decides)               Finished

The session is the commit point: a chunk is forwarded only when its first position is the next one expected, so every
position reaches the client exactly once and in order. A chunk wholly before that is a duplicate and is dropped; a gap
or a half overlap means that the worker's stream cannot be trusted, which counts as losing the worker. Events of an
attempt that is over change nothing. Exactly one terminal action (Done or Fail) is ever given, and after it only what
frees resources.

Resources are named by attempt: what Picked has booked is given back by Release, once, whatever happens; AbortWorkers
frees what a worker may still hold (the prefill's KV counts as held until the first chunk shows that it was pulled).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from streamserve.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    StreamServeError,
    WorkerLost,
)
from streamserve.contract.runtime_config import FailurePolicy
from streamserve.router.scheduler.failover import Again, Failure, Phase, next_step, with_retry_info

REMOTE: Final = "remote"
LOCAL: Final = "local"
PREFILL_ONLY: Final = "prefill-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which workers serve an attempt. `prefill_worker` is empty on a local route."""

    lane: str
    prefill_worker: str
    decode_worker: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    """What the decode worker needs from the prefill worker; nothing of it is looked at here."""

    prompt_token_ids: bytes = b""
    kv_handle: bytes = b""
    cached_prompt_tokens: int = 0


# States.


@dataclass(frozen=True, slots=True)
class Queued:
    pass


@dataclass(frozen=True, slots=True)
class Picking:
    attempt: int
    excluded: frozenset[str]
    local: bool


@dataclass(frozen=True, slots=True)
class Prefilling:
    attempt: int
    route: Route


@dataclass(frozen=True, slots=True)
class HandingOff:
    """The decode worker has been asked; it has not shown a token yet, so the KV may still be at the prefill."""

    attempt: int
    route: Route


@dataclass(frozen=True, slots=True)
class Decoding:
    attempt: int
    route: Route
    next_index: int


@dataclass(frozen=True, slots=True)
class Delivering:
    """The worker is done, the last chunk is on its way: a client that does not take it does not have the answer."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """`error` is None when the client has the whole answer."""

    error: StreamServeError | None


State = Queued | Picking | Prefilling | HandingOff | Decoding | Delivering | Finished


# Events.


@dataclass(frozen=True, slots=True)
class Admitted:
    pass


@dataclass(frozen=True, slots=True)
class Refused:
    """Admission would not have it, or it waited too long in the queue."""

    error: StreamServeError


@dataclass(frozen=True, slots=True)
class Picked:
    """A pair was chosen and booked for this attempt."""

    attempt: int
    route: Route


@dataclass(frozen=True, slots=True)
class PickFailed:
    attempt: int
    error: StreamServeError


@dataclass(frozen=True, slots=True)
class PrefillDone:
    attempt: int
    handoff: Handoff


@dataclass(frozen=True, slots=True)
class PrefillFailed:
    attempt: int
    error: StreamServeError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens from a worker. `payload` is its message as it came; a one-token request's comes from prefill."""

    attempt: int
    first_token_index: int
    token_count: int
    finished: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was to be forwarded is written. It matters of the last chunk alone."""

    attempt: int


@dataclass(frozen=True, slots=True)
class DecodeFailed:
    attempt: int
    error: StreamServeError


@dataclass(frozen=True, slots=True)
class DecodeEnded:
    """The stream closed without an error. After a finished chunk that is as it should be."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    error: StreamServeError | None = None


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    pass


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing came for longer than a healthy worker needs."""

    attempt: int
    waited_seconds: float


Event = (
    Admitted
    | Refused
    | Picked
    | PickFailed
    | PrefillDone
    | PrefillFailed
    | Chunk
    | Delivered
    | DecodeFailed
    | DecodeEnded
    | ClientGone
    | DeadlinePassed
    | Stalled
)


# Actions.


@dataclass(frozen=True, slots=True)
class Pick:
    """Choose and book workers, waiting for capacity; answer with Picked or PickFailed."""

    attempt: int
    excluded: frozenset[str]
    local: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartPrefill:
    attempt: int
    route: Route


@dataclass(frozen=True, slots=True)
class StartDecode:
    attempt: int
    route: Route
    handoff: Handoff


@dataclass(frozen=True, slots=True)
class Forward:
    """Send to the client. `opening` marks the first chunk, which also carries the route."""

    attempt: int
    payload: bytes
    route: Route
    opening: bool


@dataclass(frozen=True, slots=True)
class AbortWorkers:
    attempt: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give back what was booked for this attempt."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Done:
    attempt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Fail:
    error: StreamServeError


Action = Pick | StartPrefill | StartDecode | Forward | AbortWorkers | Release | Done | Fail


class Session:
    """The transitions of one request. `policy` is read at each failure, for it may change while the request runs."""

    __slots__ = ("_cause", "_excluded", "_local", "_may_retry", "_one_token", "_policy", "_sent", "attempts", "state")

    def __init__(
        self,
        *,
        one_token: bool,
        policy: Callable[[], FailurePolicy],
        may_retry: Callable[[], bool],
    ) -> None:
        self.state: State = Queued()
        self.attempts = 0
        self._one_token = one_token
        self._policy = policy
        self._may_retry = may_retry
        self._sent = 0
        self._excluded: frozenset[str] = frozenset()
        self._local = False
        self._cause: StreamServeError | None = None

    @property
    def tokens_sent(self) -> int:
        return self._sent

    def handle(self, event: Event) -> list[Action]:
        """Apply one event. What to do follows in order; an event that does not fit the state changes nothing."""
        if isinstance(event, Chunk):
            return self._chunk(event)
        state = self.state
        match event:
            case Picked():
                return self._picked(event)
            case ClientGone():
                return self._end(event.error or Cancelled("the client cancelled the request"))
            case DeadlinePassed():
                return self._end(
                    DeadlineExceeded(
                        f"the deadline passed while the request was {_NAMES[type(state)]}, "
                        f"{self._sent} tokens were sent; allow more time or ask for fewer tokens"
                    )
                )
            case Admitted() if isinstance(state, Queued):
                return self._pick(Again(1, frozenset(), False, ""))
            case Refused() if isinstance(state, Queued | Picking):
                return self._end(with_retry_info(event.error))
            case PickFailed() if isinstance(state, Picking) and event.attempt == state.attempt:
                return self._failed(event.error, Phase.PICK)
            case PrefillDone() if isinstance(state, Prefilling) and event.attempt == state.attempt:
                self.state = HandingOff(state.attempt, state.route)
                return [StartDecode(state.attempt, state.route, event.handoff)]
            case PrefillFailed() if isinstance(state, Prefilling) and event.attempt == state.attempt:
                return self._failed(event.error, Phase.PREFILL)
            case Delivered() if isinstance(state, Delivering) and event.attempt == state.attempt:
                self.state = Finished(None)
                return [Release(state.attempt), Done(state.attempt, self._sent)]
            case DecodeFailed() if isinstance(state, HandingOff | Decoding) and event.attempt == state.attempt:
                return self._failed(event.error, Phase.DECODE)
            case DecodeEnded() if isinstance(state, HandingOff | Decoding) and event.attempt == state.attempt:
                return self._failed(WorkerLost("the worker's stream ended without its last chunk"), Phase.DECODE)
            case Stalled() if isinstance(state, Prefilling | HandingOff | Decoding) and event.attempt == state.attempt:
                return self._stalled(state, event.waited_seconds)
            case _:
                return []

    def goes_on(self, attempt: int, first_token_index: int, token_count: int) -> bool:
        """Take the next chunk of a running answer, as `handle` would, without an event and actions for each.

        True: it is exactly what is due, and not the last one, so forward it. False: nothing changed; ask `handle`.
        """
        state = self.state
        if type(state) is not Decoding or state.attempt != attempt or first_token_index != self._sent:
            return False
        self._sent = end = first_token_index + token_count
        self.state = Decoding(attempt, state.route, end)
        return True

    def _pick(self, step: Again) -> list[Action]:
        self._excluded, self._local, self.attempts = step.excluded, step.local, step.attempt
        self.state = Picking(step.attempt, step.excluded, step.local)
        return [Pick(step.attempt, step.excluded, step.local, step.reason)]

    def _picked(self, event: Picked) -> list[Action]:
        state = self.state
        if not isinstance(state, Picking) or event.attempt != state.attempt:
            # Too late: what was booked for it must not stay booked.
            return [Release(event.attempt)] if isinstance(state, Finished | Picking | Queued) else []
        if event.route.mode == LOCAL:
            self.state = HandingOff(event.attempt, event.route)
            return [StartDecode(event.attempt, event.route, Handoff())]
        self.state = Prefilling(event.attempt, event.route)
        return [StartPrefill(event.attempt, event.route)]

    def _chunk(self, chunk: Chunk) -> list[Action]:
        state = self.state
        answers = (
            isinstance(state, HandingOff | Decoding) or (isinstance(state, Prefilling) and self._one_token)
        ) and chunk.attempt == state.attempt
        if not answers:
            return []
        assert isinstance(state, Prefilling | HandingOff | Decoding)
        expected = self._sent
        end = chunk.first_token_index + chunk.token_count
        if chunk.first_token_index < expected and end <= expected and not chunk.finished:
            return []
        if chunk.first_token_index != expected:
            phase = Phase.PREFILL if isinstance(state, Prefilling) else Phase.DECODE
            return self._failed(
                WorkerLost(
                    f"the worker sent positions {chunk.first_token_index} to {end} where {expected} was due",
                    reason="POSITION_GAP",
                ),
                phase,
            )
        if isinstance(state, Prefilling) and not chunk.finished:
            return self._failed(WorkerLost("the prefill worker's answer has no finish reason"), Phase.PREFILL)
        opening = not isinstance(state, Decoding)
        self._sent = end
        self.state = Delivering(state.attempt) if chunk.finished else Decoding(state.attempt, state.route, end)
        return [Forward(state.attempt, chunk.payload, state.route, opening)]

    def _stalled(self, state: Prefilling | HandingOff | Decoding, waited_seconds: float) -> list[Action]:
        in_prefill = isinstance(state, Prefilling)
        worker = state.route.prefill_worker if in_prefill else state.route.decode_worker
        return self._failed(
            WorkerLost(f"{worker} gave no sign for {waited_seconds:.1f} s", reason="WORKER_STALLED"),
            Phase.PREFILL if in_prefill else Phase.DECODE,
        )

    def _failed(self, error: StreamServeError, phase: Phase) -> list[Action]:
        state = self.state
        assert isinstance(state, Picking | Prefilling | HandingOff | Decoding)
        route = None if isinstance(state, Picking) else state.route
        step = next_step(
            Failure(
                error=error,
                phase=phase,
                attempt=state.attempt,
                prefill_worker=route.prefill_worker if route else "",
                decode_worker=route.decode_worker if route else "",
                local=self._local if route is None else route.mode == LOCAL,
                tokens_sent=self._sent,
                excluded=self._excluded,
                cause=self._cause,
            ),
            self._policy(),
        )
        self._cause = error
        if isinstance(step, Again) and step.attempt > state.attempt and not self._may_retry():
            return self._end(with_retry_info(error))
        if isinstance(step, Again):
            return self._free() + self._pick(step)
        return self._end(step.error)

    def _end(self, error: StreamServeError) -> list[Action]:
        if isinstance(self.state, Finished):
            return []
        freed = self._free()
        self.state = Finished(error)
        return [*freed, Fail(error)]

    def _free(self) -> list[Action]:
        state = self.state
        match state:
            case Prefilling():
                return [AbortWorkers(state.attempt, (state.route.prefill_worker,)), Release(state.attempt)]
            case HandingOff() | Decoding():
                held = isinstance(state, HandingOff) and state.route.prefill_worker
                workers = (
                    (state.route.decode_worker, state.route.prefill_worker) if held else (state.route.decode_worker,)
                )
                return [AbortWorkers(state.attempt, workers), Release(state.attempt)]
            case Delivering():
                return [Release(state.attempt)]
            case _:
                return []


_NAMES: Final[dict[type, str]] = {
    Queued: "queued",
    Picking: "waiting for workers",
    Prefilling: "in prefill",
    HandingOff: "handed to decode",
    Decoding: "decoding",
    Delivering: "read by the client",
    Finished: "finished",
}
