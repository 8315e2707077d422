"""The failure ladder, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from streamserve.contract.errors import (
    InternalError,
    InvalidRequest,
    NoWorker,
    Overloaded,
    StreamServeError,
    TransferFailed,
    WorkerLost,
)
from streamserve.contract.runtime_config import FailurePolicy
from streamserve.router.scheduler.failover import Again, Failure, Phase, Shed, next_step

STRICT, DEGRADE = FailurePolicy.STRICT, FailurePolicy.DEGRADE


@dataclass(frozen=True)
class Case:
    error: StreamServeError
    phase: Phase
    attempt: int = 1
    policy: FailurePolicy = DEGRADE
    sent: int = 0
    local: bool = False
    again: tuple[int, set[str], bool] | None = None
    reason: str = ""


CASES = {
    "a lost prefill worker is excluded and another pair is picked": Case(
        WorkerLost("gone"), Phase.PREFILL, again=(2, {"p"}, False)
    ),
    "a lost decode worker is excluded and the prompt is computed again": Case(
        WorkerLost("gone"), Phase.DECODE, again=(2, {"d"}, False)
    ),
    "a failed transfer blames the prefill side first": Case(
        TransferFailed("no bytes"), Phase.DECODE, again=(2, {"p"}, False)
    ),
    "a full worker is passed by": Case(Overloaded("full"), Phase.PREFILL, again=(2, {"p"}, False)),
    "with one attempt left Degrade lets the decode worker prefill": Case(
        TransferFailed("no bytes"), Phase.DECODE, attempt=2, again=(3, {"p"}, True)
    ),
    "with one attempt left Strict tries another pair": Case(
        TransferFailed("no bytes"), Phase.DECODE, attempt=2, policy=STRICT, again=(3, {"p"}, False)
    ),
    "a decode worker that died twice is no reason to prefill locally": Case(
        WorkerLost("gone"), Phase.DECODE, attempt=2, again=(3, {"d"}, False)
    ),
    "a local attempt that failed stays local elsewhere": Case(
        WorkerLost("gone"), Phase.DECODE, local=True, again=(2, {"d"}, True)
    ),
    "three attempts are enough": Case(WorkerLost("gone"), Phase.PREFILL, attempt=3, reason="WORKER_LOST"),
    "a request that would fail again is not tried again": Case(
        InvalidRequest("bad"), Phase.PREFILL, reason="INVALID_REQUEST"
    ),
    "a defect is not tried again": Case(InternalError("bug"), Phase.DECODE, reason="INTERNAL"),
    "when no lane is left the request is shed": Case(NoWorker("none"), Phase.PICK, reason="NO_WORKER"),
    "after the first token a lost stream is lost": Case(WorkerLost("gone"), Phase.DECODE, sent=7, reason="STREAM_LOST"),
    "after the first token an overloaded worker is a lost stream too": Case(
        Overloaded("full"), Phase.DECODE, sent=1, reason="STREAM_LOST"
    ),
    "after the first token a defect keeps its name": Case(
        InternalError("bug"), Phase.DECODE, sent=1, reason="INTERNAL"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_next_step(case: Case) -> None:
    step = next_step(
        Failure(
            error=case.error,
            phase=case.phase,
            attempt=case.attempt,
            prefill_worker="" if case.local else "p",
            decode_worker="d",
            local=case.local,
            tokens_sent=case.sent,
        ),
        case.policy,
    )
    if case.again is not None:
        assert isinstance(step, Again)
        assert (step.attempt, set(step.excluded), step.local) == case.again
    else:
        assert isinstance(step, Shed)
        assert step.error.reason == case.reason


def test_a_retry_that_finds_nobody_tells_what_the_last_worker_said() -> None:
    step = next_step(
        Failure(error=NoWorker("none"), phase=Phase.PICK, attempt=2, cause=TransferFailed("no bytes")), STRICT
    )
    assert isinstance(step, Shed)
    assert step.error.reason == "KV_TRANSFER_FAILED"
    assert step.error.retry_after_seconds is not None


def test_a_lost_stream_says_how_many_tokens_the_client_has() -> None:
    step = next_step(Failure(error=WorkerLost("x"), phase=Phase.DECODE, attempt=2, tokens_sent=9), DEGRADE)
    assert isinstance(step, Shed)
    assert step.error.metadata == {"tokens_delivered": "9", "attempt": "2"}
    assert step.error.retry_after_seconds is not None
