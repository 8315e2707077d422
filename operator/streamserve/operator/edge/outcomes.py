"""What a request to the API server may end in, other than well.

    ApiError
    ├── Retryable                the same request may succeed later
    │   ├── Conflict             409   somebody else was faster, or holds a field that we did not force
    │   ├── Unauthorized         401   credentials expired; they are read anew
    │   └── Failing                    worth telling when it lasts
    │       ├── Throttled        429   `retry_after_seconds` where the server says
    │       ├── ServerFailed     5xx
    │       └── Unreachable            no connection, no answer in time, no readable answer
    └── Permanent                the same request fails again
        ├── NotFound             404
        ├── Gone                 410
        └── Refused              400 403 405 413 415 422 …   the spec, a policy, a quota or our rights

Decided by the status alone; the message is the server's own.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    def __init__(self, message: str, *, status: int = 0, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class Retryable(ApiError):
    """The same request may succeed later."""


class Conflict(Retryable):
    pass


class Unauthorized(Retryable):
    pass


class Failing(Retryable):
    """Not our doing, and worth telling when it lasts."""


class Throttled(Failing):
    pass


class ServerFailed(Failing):
    pass


class Unreachable(Failing):
    pass


class Permanent(ApiError):
    """The same request fails again."""


class NotFound(Permanent):
    pass


class Gone(Permanent):
    pass


class Refused(Permanent):
    pass


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    404: NotFound,
    408: Unreachable,
    409: Conflict,
    410: Gone,
    429: Throttled,
}
_MAX_RETRY_AFTER_SECONDS = 60.0


def of_status(status: int, body: Any, retry_after: str = "") -> ApiError:
    """The error that an answer with this status (≥ 400) means."""
    said = body if isinstance(body, dict) else {}
    message = str(said.get("message") or body or f"HTTP {status}")
    kind = _BY_STATUS.get(status) or (ServerFailed if status >= 500 else Refused)
    asked = retry_after or str((said.get("details") or {}).get("retryAfterSeconds") or "")
    seconds = min(float(asked), _MAX_RETRY_AFTER_SECONDS) if asked.isdigit() else 0.0
    return kind(message, status=status, retry_after_seconds=seconds)
