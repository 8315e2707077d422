"""What to do after a failure: other workers, the decode worker's own prefill, or the end.

The ladder, from the top, for a request of which no token has been sent:

    1. another prefill worker, then another lane: the pick decides, the culprit is excluded
    2. the decode worker computes the prompt itself        (failure policy Degrade only)
    3. shed: the error goes to the client with RetryInfo

The pick takes step 2 by itself when no pair is left; here it is ordered when only the last attempt is left and the
failure lay on the prefill side. There are at most MAX_ATTEMPTS attempts, each retry spends from the router's retry
budget, and an error that would only repeat itself is never tried again. A failed transfer takes the same ladder: it
is recomputed only by step 2, and then the route says "local". When nobody is left for a retry, the client is told
what the last worker said.

Once a token has been sent a lost stream ends with reason STREAM_LOST. Going on elsewhere from the tokens already sent
would be another step of this function, and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from streamserve.contract.errors import Retryable, StreamServeError, TransferFailed, WorkerLost
from streamserve.contract.runtime_config import FailurePolicy

MAX_ATTEMPTS: Final = 3
RETRY_AFTER_SECONDS: Final = 1.0


class Phase(Enum):
    """Where the request was when it failed."""

    PICK = "pick"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failure with what the decision needs. `tokens_sent` counts what the client already has."""

    error: StreamServeError
    phase: Phase
    attempt: int
    prefill_worker: str = ""
    decode_worker: str = ""
    local: bool = False
    tokens_sent: int = 0
    excluded: frozenset[str] = frozenset()
    # What the attempt before failed with, when there was one.
    cause: StreamServeError | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """Pick again without `excluded`; `local` means a decode worker alone. `attempt` is the one that starts."""

    attempt: int
    excluded: frozenset[str]
    local: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Shed:
    """Give up with this error."""

    error: StreamServeError
    reason: str


Step = Again | Shed


def next_step(failure: Failure, policy: FailurePolicy) -> Step:
    """The next rung of the ladder and why. The caller asks the retry budget before it starts another attempt."""
    error = failure.error
    if failure.tokens_sent:
        return Shed(_stream_lost(failure), "tokens were already sent")
    if not isinstance(error, Retryable):
        return Shed(error, "the same request would fail again")
    if failure.phase is Phase.PICK:
        return Shed(with_retry_info(failure.cause or error), "no worker left")
    if failure.attempt >= MAX_ATTEMPTS:
        return Shed(with_retry_info(error), f"{MAX_ATTEMPTS} attempts failed")
    prefill_side = failure.phase is Phase.PREFILL or isinstance(error, TransferFailed)
    culprit = failure.prefill_worker if prefill_side and failure.prefill_worker else failure.decode_worker
    excluded = failure.excluded | {culprit} if culprit else failure.excluded
    attempt = failure.attempt + 1
    degrade = policy is FailurePolicy.DEGRADE and prefill_side and attempt == MAX_ATTEMPTS
    if degrade and failure.decode_worker:
        return Again(attempt, excluded, True, "last attempt: the decode worker prefills")
    return Again(attempt, excluded, failure.local, f"{error.reason} on {culprit or 'an unknown worker'}")


def with_retry_info(error: StreamServeError) -> StreamServeError:
    """The error with a time to wait, for a client that may try again."""
    if isinstance(error, Retryable) and error.retry_after_seconds is None:
        error.retry_after_seconds = RETRY_AFTER_SECONDS
    return error


def _stream_lost(failure: Failure) -> StreamServeError:
    if not isinstance(failure.error, Retryable):
        return failure.error
    return WorkerLost(
        f"the stream was lost after {failure.tokens_sent} tokens ({failure.error.message}); send the request again",
        reason="STREAM_LOST",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        metadata={"tokens_delivered": str(failure.tokens_sent), "attempt": str(failure.attempt)},
    )
