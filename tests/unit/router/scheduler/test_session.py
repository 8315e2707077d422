"""The session's transitions: a table, then any schedule of events that a hostile world may send."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamserve.contract.errors import (
    InternalError,
    InvalidRequest,
    NoWorker,
    Overloaded,
    SlowConsumer,
    StreamServeError,
    TransferFailed,
    WorkerLost,
)
from streamserve.contract.runtime_config import FailurePolicy
from streamserve.router.scheduler.failover import MAX_ATTEMPTS
from streamserve.router.scheduler.session import (
    LOCAL,
    PREFILL_ONLY,
    REMOTE,
    AbortWorkers,
    Action,
    Admitted,
    Chunk,
    ClientGone,
    DeadlinePassed,
    DecodeEnded,
    DecodeFailed,
    Decoding,
    Delivered,
    Delivering,
    Done,
    Event,
    Fail,
    Finished,
    Forward,
    HandingOff,
    Handoff,
    Pick,
    Picked,
    PickFailed,
    Picking,
    PrefillDone,
    PrefillFailed,
    Prefilling,
    Queued,
    Refused,
    Release,
    Route,
    Session,
    Stalled,
    StartDecode,
    StartPrefill,
)


def route(mode: str = REMOTE, n: int = 0) -> Route:
    return Route(
        lane=f"lane-{n}",
        prefill_worker="" if mode == LOCAL else f"p{n}",
        decode_worker="" if mode == PREFILL_ONLY else f"d{n}",
        mode=mode,
    )


def session(*, one_token: bool = False, policy: FailurePolicy = FailurePolicy.DEGRADE, retries: int = 9) -> Session:
    left = [retries]

    def may_retry() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return Session(one_token=one_token, policy=lambda: policy, may_retry=may_retry)


def chunk(first: int, count: int = 1, *, last: bool = False, attempt: int = 1) -> Chunk:
    return Chunk(attempt, first, count, last, b"x")


def names(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


@dataclass(frozen=True)
class Case:
    events: list[Event]
    state: type
    actions: list[str]
    """Of the last event."""
    reason: str = ""
    one_token: bool = False
    policy: FailurePolicy = FailurePolicy.DEGRADE
    retries: int = 9


PLACED: list[Event] = [Admitted(), Picked(1, route())]
HANDED: list[Event] = [*PLACED, PrefillDone(1, Handoff())]
OPEN: list[Event] = [*HANDED, chunk(0)]

CASES = {
    "an admitted request is picked for": Case([Admitted()], Picking, ["Pick"]),
    "one refused by admission fails at once": Case(
        [Refused(Overloaded("full"))], Finished, ["Fail"], reason="OVERLOADED"
    ),
    "a picked pair prefills": Case(PLACED, Prefilling, ["StartPrefill"]),
    "a local route goes straight to decode": Case([Admitted(), Picked(1, route(LOCAL))], HandingOff, ["StartDecode"]),
    "a computed prompt is handed to decode": Case(HANDED, HandingOff, ["StartDecode"]),
    "the first chunk opens the answer": Case(OPEN, Decoding, ["Forward"]),
    "a chunk that starts at the next position is forwarded": Case([*OPEN, chunk(1, 4)], Decoding, ["Forward"]),
    "a chunk that was seen already is dropped": Case([*OPEN, chunk(1, 4), chunk(1, 2)], Decoding, []),
    "an empty chunk at the next position may carry text": Case([*OPEN, chunk(1, 0)], Decoding, ["Forward"]),
    "a gap loses the stream": Case(
        [*OPEN, chunk(2)], Finished, ["AbortWorkers", "Release", "Fail"], reason="STREAM_LOST"
    ),
    "a half overlap loses the stream": Case(
        [*OPEN, chunk(1, 3), chunk(3, 3)], Finished, ["AbortWorkers", "Release", "Fail"], reason="STREAM_LOST"
    ),
    "a gap at the very start is retried elsewhere": Case(
        [*HANDED, chunk(1)], Picking, ["AbortWorkers", "Release", "Pick"]
    ),
    "the last chunk is forwarded before anything is over": Case(
        [*OPEN, chunk(1, 1, last=True)], Delivering, ["Forward"]
    ),
    "the last chunk ends it when it is written": Case(
        [*OPEN, chunk(1, 1, last=True), Delivered(1)], Finished, ["Release", "Done"]
    ),
    "a chunk that is written is no news before the last one": Case([*OPEN, Delivered(1)], Decoding, []),
    "a client that does not take the last chunk does not have the answer": Case(
        [*OPEN, chunk(1, 1, last=True), ClientGone(SlowConsumer("read faster"))],
        Finished,
        ["Release", "Fail"],
        reason="SLOW_CONSUMER",
    ),
    "a deadline that passes over the last chunk ends the request": Case(
        [*OPEN, chunk(1, 1, last=True), DeadlinePassed()], Finished, ["Release", "Fail"], reason="DEADLINE_EXCEEDED"
    ),
    "a stream that ends without a last chunk is lost": Case(
        [*OPEN, DecodeEnded(1)], Finished, ["AbortWorkers", "Release", "Fail"], reason="STREAM_LOST"
    ),
    "the end of the stream after the last chunk is no news": Case(
        [*OPEN, chunk(1, 1, last=True), Delivered(1), DecodeEnded(1)], Finished, []
    ),
    "a prefill that fails is retried": Case(
        [*PLACED, PrefillFailed(1, WorkerLost("gone"))], Picking, ["AbortWorkers", "Release", "Pick"]
    ),
    "a prompt that the model cannot take is not retried": Case(
        [*PLACED, PrefillFailed(1, InvalidRequest("too long"))],
        Finished,
        ["AbortWorkers", "Release", "Fail"],
        reason="INVALID_REQUEST",
    ),
    "without budget there is no retry": Case(
        [*PLACED, PrefillFailed(1, WorkerLost("gone"))],
        Finished,
        ["AbortWorkers", "Release", "Fail"],
        reason="WORKER_LOST",
        retries=0,
    ),
    "a failure of an attempt that is over changes nothing": Case(
        [*PLACED, PrefillFailed(1, WorkerLost("gone")), PrefillFailed(1, WorkerLost("late"))], Picking, []
    ),
    "a stall before the first token is retried": Case(
        [*HANDED, Stalled(1, 10.0)], Picking, ["AbortWorkers", "Release", "Pick"]
    ),
    "a stall after it loses the stream": Case(
        [*OPEN, Stalled(1, 10.0)], Finished, ["AbortWorkers", "Release", "Fail"], reason="STREAM_LOST"
    ),
    "a retry that finds no worker ends with what went wrong before": Case(
        [*PLACED, PrefillFailed(1, TransferFailed("x")), PickFailed(2, NoWorker("none"))],
        Finished,
        ["Fail"],
        reason="KV_TRANSFER_FAILED",
    ),
    "a client that leaves in the queue costs nothing": Case([ClientGone()], Finished, ["Fail"], reason="CANCELLED"),
    "a client that leaves while decoding frees the workers": Case(
        [*OPEN, ClientGone()], Finished, ["AbortWorkers", "Release", "Fail"], reason="CANCELLED"
    ),
    "a pair booked for a client that has left is given back": Case(
        [Admitted(), ClientGone(), Picked(1, route())], Finished, ["Release"], reason="CANCELLED"
    ),
    "the deadline ends a prefill": Case(
        [*PLACED, DeadlinePassed()], Finished, ["AbortWorkers", "Release", "Fail"], reason="DEADLINE_EXCEEDED"
    ),
    "a one-token request is answered by prefill": Case(
        [Admitted(), Picked(1, route(PREFILL_ONLY)), chunk(0, last=True), Delivered(1)],
        Finished,
        ["Release", "Done"],
        one_token=True,
    ),
    "a prefill answer without its end is not forwarded": Case(
        [Admitted(), Picked(1, route(PREFILL_ONLY)), chunk(0)],
        Picking,
        ["AbortWorkers", "Release", "Pick"],
        one_token=True,
    ),
    "a chunk during an ordinary prefill is ignored": Case([*PLACED, chunk(0)], Prefilling, []),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_transition(case: Case) -> None:
    subject = session(one_token=case.one_token, policy=case.policy, retries=case.retries)
    actions: list[Action] = []
    for event in case.events:
        actions = subject.handle(event)
    assert isinstance(subject.state, case.state)
    assert names(actions) == case.actions
    if case.reason:
        assert isinstance(subject.state, Finished)
        assert subject.state.error is not None
        assert subject.state.error.reason == case.reason


def test_the_kv_counts_as_held_by_prefill_until_the_first_chunk() -> None:
    for events, workers in ((HANDED, ("d0", "p0")), (OPEN, ("d0",))):
        subject = session()
        for event in events:
            subject.handle(event)
        first = subject.handle(ClientGone())[0]
        assert isinstance(first, AbortWorkers)
        assert first.workers == workers


def test_culprits_add_up_over_attempts() -> None:
    subject = session(policy=FailurePolicy.STRICT)
    subject.handle(Admitted())
    subject.handle(Picked(1, route(n=0)))
    subject.handle(PrefillFailed(1, WorkerLost("x")))
    subject.handle(Picked(2, route(n=1)))
    pick = subject.handle(PrefillFailed(2, WorkerLost("x")))[-1]
    assert pick == Pick(3, frozenset({"p0", "p1"}), False, "WORKER_LOST on p1")


ERRORS: list[StreamServeError] = [
    WorkerLost("lost"),
    TransferFailed("no bytes"),
    Overloaded("full"),
    InternalError("bug"),
    InvalidRequest("bad"),
]
errors = st.sampled_from(ERRORS)
attempts = st.integers(1, MAX_ATTEMPTS + 1)


class AnySchedule(RuleBasedStateMachine):
    """Late, doubled, foreign and impossible events, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.one_token = False
        self.subject = session(retries=2)
        self.booked: list[int] = []
        self.released: list[int] = []
        self.positions: list[int] = []
        self.terminal: list[Action] = []
        self.starts = 0

    def feed(self, event: Event) -> None:
        was_finished = isinstance(self.subject.state, Finished)
        actions = self.subject.handle(event)
        if was_finished:
            assert set(names(actions)) <= {"Release"}
        for action in actions:
            match action:
                case Release(attempt):
                    self.released.append(attempt)
                case Done() | Fail():
                    self.terminal.append(action)
                case StartPrefill() | StartDecode():
                    self.starts += 1
                case Forward():
                    assert isinstance(event, Chunk)
                    self.positions += range(event.first_token_index, event.first_token_index + event.token_count)
                case _:
                    pass

    @rule()
    def admitted(self) -> None:
        self.feed(Admitted())

    @rule(error=errors)
    def refused(self, error: StreamServeError) -> None:
        self.feed(Refused(error))

    @precondition(lambda self: isinstance(self.subject.state, Picking))
    @rule(mode=st.sampled_from([REMOTE, LOCAL]))
    def picked(self, mode: str) -> None:
        attempt = self.subject.state.attempt
        self.booked.append(attempt)
        self.feed(Picked(attempt, route(mode)))

    @precondition(lambda self: isinstance(self.subject.state, Finished))
    @rule(attempt=attempts)
    def picked_too_late(self, attempt: int) -> None:
        self.booked.append(attempt)
        self.feed(Picked(attempt, route()))

    @rule(attempt=attempts)
    def pick_failed(self, attempt: int) -> None:
        self.feed(PickFailed(attempt, NoWorker("none")))

    @rule(attempt=attempts)
    def prefilled(self, attempt: int) -> None:
        self.feed(PrefillDone(attempt, Handoff()))

    @rule(attempt=attempts, error=errors)
    def prefill_failed(self, attempt: int, error: StreamServeError) -> None:
        self.feed(PrefillFailed(attempt, error))

    @rule(attempt=attempts, first=st.integers(0, 6), count=st.integers(0, 3), last=st.booleans())
    def any_chunk(self, attempt: int, first: int, count: int, last: bool) -> None:
        self.feed(chunk(first, count, last=last, attempt=attempt))

    @precondition(lambda self: isinstance(self.subject.state, HandingOff | Decoding))
    @rule(count=st.integers(1, 3), last=st.booleans())
    def next_chunk(self, count: int, last: bool) -> None:
        self.feed(chunk(self.subject.tokens_sent, count, last=last, attempt=self.subject.state.attempt))

    @rule(attempt=attempts)
    def delivered(self, attempt: int) -> None:
        self.feed(Delivered(attempt))

    @rule(attempt=attempts, error=errors)
    def decode_failed(self, attempt: int, error: StreamServeError) -> None:
        self.feed(DecodeFailed(attempt, error))

    @rule(attempt=attempts)
    def decode_ended(self, attempt: int) -> None:
        self.feed(DecodeEnded(attempt))

    @rule(attempt=attempts)
    def stalled(self, attempt: int) -> None:
        self.feed(Stalled(attempt, 10.0))

    @rule()
    def client_gone(self) -> None:
        self.feed(ClientGone())

    @rule()
    def deadline(self) -> None:
        self.feed(DeadlinePassed())

    @invariant()
    def one_terminal_action_and_only_when_finished(self) -> None:
        assert len(self.terminal) == (1 if isinstance(self.subject.state, Finished) else 0)

    @invariant()
    def every_position_once_and_in_order(self) -> None:
        assert self.positions == list(range(len(self.positions)))

    @invariant()
    def at_most_three_attempts(self) -> None:
        assert self.subject.attempts <= MAX_ATTEMPTS

    @invariant()
    def what_is_booked_is_held_or_given_back(self) -> None:
        held = isinstance(self.subject.state, Prefilling | HandingOff | Decoding | Delivering)
        assert len(self.booked) - len(self.released) == (1 if held else 0)


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_a_new_session_waits() -> None:
    assert isinstance(session().state, Queued)
