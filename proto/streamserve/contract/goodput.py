"""What one router saw end in one minute, by lane and workload: the evidence on which a canary is judged.

    goodput = output tokens of the requests within their SLO / engine-seconds of all requests

`engine_seconds` is time of the decode engine, wasted work included: a step of d seconds with b requests in its batch
costs each of them d/b, so the requests of a step add up to the step. Time while nothing runs is in no record: a lane
that gets few requests is not for that a worse lane.

A record is of one whole minute by its router's clock. Both arms of a comparison stand in the same record, so a wrong
clock shifts both alike. It names the configuration that was in force from the minute's beginning to its end; a minute
in which it changed is not recorded. Requests that their client cancelled are in none.

The router is the one to write it, for it alone knows which request kept its SLO: the list `router/<id>/goodput`, the
newest last, at most MINUTES. What it does not know yet is `engine_seconds`: the worker's scheduler does, and would
send them in the last message of a decode stream. Neither side is built, so a StreamPair with canary lanes is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamserve.contract.runtime_config import ConfigId

VERSION: Final = 1
MINUTES: Final = 1_440
MAX_BYTES: Final = 1_048_576
MAX_ROWS: Final = 8_192

_Count = Annotated[int, Field(ge=0, lt=2**53)]


class GoodputError(ValueError):
    """The bytes are no record that this reader can use. The message says which field and why."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LaneGoodput(_Frozen):
    """Requests of one workload that ended on one lane in the minute."""

    lane: Annotated[str, Field(min_length=1, max_length=63)]
    workload: Annotated[str, Field(min_length=1, max_length=32)]
    requests: _Count
    requests_within_slo: _Count
    tokens_within_slo: _Count
    engine_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.requests_within_slo > self.requests:
            raise ValueError(f"{self.requests_within_slo} of {self.requests} requests are within their SLO")
        return self


class GoodputMinute(_Frozen):
    """`minute` counts from the epoch."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    minute: _Count
    config: ConfigId
    rows: Annotated[tuple[LaneGoodput, ...], Field(max_length=MAX_ROWS)] = ()


def encode(record: GoodputMinute) -> bytes:
    return record.model_dump_json().encode()


def decode(data: bytes | str) -> GoodputMinute:
    """The record in `data`. Raises GoodputError with a readable reason, and nothing else."""
    if len(data) > MAX_BYTES:
        raise GoodputError(f"{len(data)} bytes is over the {MAX_BYTES} that a record may have")
    try:
        return GoodputMinute.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise GoodputError(f"{where}: {first['msg']}") from None
    except ValueError as error:
        raise GoodputError(f"not readable: {error}") from None
