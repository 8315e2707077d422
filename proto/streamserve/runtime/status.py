"""The contract's errors on the wire, and back.

gRPC: the status code of the error's type, with google.rpc details: ErrorInfo always (reason, domain, metadata),
RetryInfo when a retry helps, BadRequest when one field is at fault. HTTP: the nearest status.

A refusal may repeat what was sent, of any length; gRPC refuses trailers of some 8 KiB and ends such a call as
RESOURCE_EXHAUSTED, which clients send again. So a message is cut on the wire.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from streamserve.contract.errors import DOMAIN, InvalidRequest, StreamServeError, WorkerLost, from_wire
from streamserve.contract.request_id import MAX_CLIENT_CHARACTERS

_HTTP: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "FAILED_PRECONDITION": 503,
    "DEADLINE_EXCEEDED": 504,
}
_REQUEST_ID: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_CLIENT_CHARACTERS}}}")
REQUEST_ID_METADATA: Final = "x-request-id"
# The message is there up to three times: as it is (a byte may take three), in the status and in BadRequest (base64).
MESSAGE_BYTES: Final = 1_000
_METADATA_BYTES: Final = 250


def to_status(error: StreamServeError) -> status_pb2.Status:
    """google.rpc.Status with its details packed; texts no longer than a trailer may be."""
    message = _cut(error.message, MESSAGE_BYTES)
    metadata = {name: _cut(value, _METADATA_BYTES) for name, value in error.metadata.items()}
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata={"kind": type(error).__name__, **metadata}
        ),
    ]
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(max(0.0, error.retry_after_seconds) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _METADATA_BYTES), description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str, most: int) -> str:
    """The beginning and the end of a text that takes more than `most` bytes."""
    data = text.encode(errors="replace")
    if len(data) <= most:
        return text
    half = (most - 5) // 2
    return f"{data[:half].decode(errors='ignore')} … {data[-half:].decode(errors='ignore')}"


async def abort(context: Any, error: StreamServeError) -> NoReturn:
    """End the call with the error's status and details."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def from_rpc_error(error: grpc.aio.AioRpcError) -> StreamServeError:
    """The contract's error that a peer sent; a transport failure without details is a lost worker."""
    code, message = error.code().name, error.details() or error.code().name
    rich = _rich(error)
    if rich is None:
        if code in ("UNAVAILABLE", "UNKNOWN", "ABORTED", "INTERNAL"):
            return WorkerLost(f"the connection failed: {message}")
        return from_wire(code, "", message)
    return _from_details(rich, code, message)


def from_status(packed: bytes) -> StreamServeError:
    """The same from a google.rpc.Status that came in a message."""
    rich = status_pb2.Status()
    try:
        rich.ParseFromString(packed)
        code = code_pb2.Code.Name(rich.code)
    except (DecodeError, ValueError):
        return WorkerLost("the peer sent an error that cannot be read: check its version")
    return _from_details(rich, code, rich.message)


def _from_details(rich: status_pb2.Status, code: str, message: str) -> StreamServeError:
    kind, reason, retry, field = "", "", None, None
    for packed in rich.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            kind, reason = info.metadata.get("kind", ""), info.reason
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info_retry = error_details_pb2.RetryInfo()
            packed.Unpack(info_retry)
            retry = info_retry.retry_delay.ToNanoseconds() / 1e9
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            packed.Unpack(bad)
            field = bad.field_violations[0].field if bad.field_violations else None
    result = from_wire(code, reason, message, kind=kind, retry_after_seconds=retry)
    if isinstance(result, InvalidRequest):
        result.field = field
    return result


def _rich(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status()
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
            return status
    return None


def http_status(error: StreamServeError) -> int:
    return _HTTP.get(error.code, 500)


def request_id_of(context: Any) -> str:
    """The caller's x-request-id, or a new one. Raises InvalidRequest for one that is not 1-128 printable ASCII."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_METADATA:
            return checked_request_id(value if isinstance(value, str) else value.decode(errors="replace"))
    return uuid.uuid4().hex


def checked_request_id(value: str) -> str:
    if not _REQUEST_ID.fullmatch(value):
        raise InvalidRequest("x-request-id must be 1 to 128 printable ASCII characters without spaces")
    return value


def remaining_seconds(context: Any) -> float | None:
    """Time left until the caller's deadline; None without one."""
    left = context.time_remaining()
    return None if left is None or left > 10 * 365 * 86_400 else float(left)
