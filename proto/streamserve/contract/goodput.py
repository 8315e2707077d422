"""What one router saw end in one minute, by lane and workload: the evidence on which a canary is judged.

    goodput = output tokens of the requests within their SLO / engine-seconds of all requests

`engine_seconds` is time in which the decode worker's engine has requests, wasted work included. Each moment of it is
shared equally among the requests that the engine has then, queued ones included, so all of them together add up to the
time in which it had any. The worker measures it (`engine_time.py`) and sends it in the last message of a stream. A
request that ends without one (cancelled, out of time, moved elsewhere) has used the engine too: the worker adds its
share to the next request of the same workload that ends whole. Time while nothing runs is in no record: a lane that
gets few requests is not for that a worse lane.

A record is of one whole minute by its router's clock. Both arms of a comparison stand in the same record, so a wrong
clock shifts both alike. It names the configuration that was in force from the minute's beginning to its end; a minute
in which it changed is not recorded. It counts the requests that ended whole on a decode worker, begun and ended under
that configuration by the router's and the worker's own word.

The router is the one to write it, for it alone knows which request kept its SLO: the list `router/<id>/goodput`, the
newest last, at most MINUTES. It does so only while a configuration names canary lanes: nobody else reads it.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamserve.contract import json_form
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
    return json_form.read(GoodputMinute, data, max_bytes=MAX_BYTES, what="a record", error=GoodputError)
