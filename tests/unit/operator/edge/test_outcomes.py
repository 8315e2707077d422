"""Whether a request is tried again is decided by the type of its outcome, the type by the status."""

import pytest

from streamserve.operator.edge.outcomes import (
    ApiError,
    Conflict,
    Gone,
    NotFound,
    Permanent,
    Refused,
    Retryable,
    ServerFailed,
    Throttled,
    Unauthorized,
    Unreachable,
    of_status,
)

CASES: dict[str, tuple[int, type[ApiError], type[ApiError]]] = {
    "a body that cannot be read": (400, Refused, Permanent),
    "a token that expired": (401, Unauthorized, Retryable),
    "a right, a quota or a policy": (403, Refused, Permanent),
    "an object that is gone": (404, NotFound, Permanent),
    "an object that changed meanwhile": (409, Conflict, Retryable),
    "a version that is too old": (410, Gone, Permanent),
    "a request too large": (413, Refused, Permanent),
    "a value that the schema forbids": (422, Refused, Permanent),
    "too many requests": (429, Throttled, Retryable),
    "a defect of the server": (500, ServerFailed, Retryable),
    "a server that starts": (503, ServerFailed, Retryable),
    "a server that gave up waiting": (408, Unreachable, Retryable),
}


@pytest.mark.parametrize(("status", "kind", "base"), CASES.values(), ids=CASES)
def test_a_status_has_one_meaning(status: int, kind: type[ApiError], base: type[ApiError]) -> None:
    error = of_status(status, {"message": "the server's words"})
    assert type(error) is kind
    assert isinstance(error, base)
    assert (error.message, error.status) == ("the server's words", status)


def test_the_server_may_say_when_in_a_header_or_in_its_details() -> None:
    assert of_status(429, {"message": "slow"}, "7").retry_after_seconds == 7.0
    assert of_status(429, {"message": "slow", "details": {"retryAfterSeconds": 3}}).retry_after_seconds == 3.0
    assert of_status(429, {"message": "slow"}, "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_seconds == 0.0
    assert of_status(503, {"message": "slow"}, "86400").retry_after_seconds == 60.0


def test_an_answer_that_is_no_status_object_is_shown_as_it_is() -> None:
    assert of_status(502, "bad gateway").message == "bad gateway"
    assert of_status(502, None).message == "HTTP 502"
