"""The one tree of errors that components exchange.

    StreamServeError
    ├── Retryable                 the same request may succeed elsewhere or later
    │   ├── NoWorker              UNAVAILABLE          no lane takes traffic
    │   ├── WorkerLost            UNAVAILABLE          a worker died, froze or was drained under the request
    │   ├── Overloaded            RESOURCE_EXHAUSTED   a bounded queue is full, or waiting took too long
    │   ├── InfeasibleDeadline    RESOURCE_EXHAUSTED   the deadline could not be met, so nothing was started
    │   ├── SlowConsumer          RESOURCE_EXHAUSTED   the client stopped reading
    │   └── TransferFailed        UNAVAILABLE          KV did not move from prefill to decode
    └── Permanent                 the same request fails again
        ├── Unauthenticated       UNAUTHENTICATED      neither a certificate nor a known token
        ├── InvalidRequest        INVALID_ARGUMENT     `field` says which part
        ├── UnknownModel          NOT_FOUND
        ├── DuplicateRequest      ALREADY_EXISTS
        ├── DeadlineExceeded      DEADLINE_EXCEEDED
        ├── Cancelled             CANCELLED            by the client
        ├── NotReady              FAILED_PRECONDITION
        └── InternalError         INTERNAL             a defect of ours or of the engine

Whether to retry is decided by the type alone. `reason` is the ErrorInfo reason on the wire (AIP-193), `retry_after`
becomes RetryInfo and the Retry-After header. Every message says what to do next.
"""

from __future__ import annotations

from typing import ClassVar

DOMAIN = "streamserve.io"


class StreamServeError(Exception):
    """Base of the tree. `code` is the name of the gRPC status; `metadata` goes into ErrorInfo."""

    code: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_seconds: float | None = None,
        field: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retry_after_seconds = retry_after_seconds
        self.field = field
        self.metadata = dict(metadata or {})


class Retryable(StreamServeError):
    """The same request may succeed elsewhere or later."""


class NoWorker(Retryable):
    code = "UNAVAILABLE"
    default_reason = "NO_WORKER"


class WorkerLost(Retryable):
    code = "UNAVAILABLE"
    default_reason = "WORKER_LOST"


class TransferFailed(Retryable):
    code = "UNAVAILABLE"
    default_reason = "KV_TRANSFER_FAILED"


class Overloaded(Retryable):
    code = "RESOURCE_EXHAUSTED"
    default_reason = "OVERLOADED"


class InfeasibleDeadline(Retryable):
    code = "RESOURCE_EXHAUSTED"
    default_reason = "INFEASIBLE_DEADLINE"


class SlowConsumer(Retryable):
    code = "RESOURCE_EXHAUSTED"
    default_reason = "SLOW_CONSUMER"


class Permanent(StreamServeError):
    """The same request fails again."""


class Unauthenticated(Permanent):
    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class InvalidRequest(Permanent):
    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_REQUEST"


class UnknownModel(Permanent):
    code = "NOT_FOUND"
    default_reason = "UNKNOWN_MODEL"


class DuplicateRequest(Permanent):
    code = "ALREADY_EXISTS"
    default_reason = "DUPLICATE_REQUEST_ID"


class DeadlineExceeded(Permanent):
    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(Permanent):
    code = "CANCELLED"
    default_reason = "CANCELLED"


class NotReady(Permanent):
    code = "FAILED_PRECONDITION"
    default_reason = "NOT_READY"


class InternalError(Permanent):
    code = "INTERNAL"
    default_reason = "INTERNAL"


ALL_ERRORS: tuple[type[StreamServeError], ...] = (
    NoWorker,
    WorkerLost,
    TransferFailed,
    Overloaded,
    InfeasibleDeadline,
    SlowConsumer,
    Unauthenticated,
    InvalidRequest,
    UnknownModel,
    DuplicateRequest,
    DeadlineExceeded,
    Cancelled,
    NotReady,
    InternalError,
)


_BY_NAME = {kind.__name__: kind for kind in ALL_ERRORS}


def from_wire(
    code: str, reason: str, message: str, *, kind: str = "", retry_after_seconds: float | None = None
) -> StreamServeError:
    """The error that a peer sent: of the type that it named, else the first type of its code, else InternalError."""
    known = _BY_NAME.get(kind) or next((error for error in ALL_ERRORS if error.code == code), InternalError)
    return known(message, reason=reason or None, retry_after_seconds=retry_after_seconds)
