"""Who and where a worker is: key `worker/<id>/endpoint`, written each second."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from streamserve.contract import json_form
from streamserve.v1 import worker_pb2

VERSION: Final = 1
MAX_BYTES: Final = 16_384
_MAX_BOOT_ID: Final = 2**64 - 1


class EndpointError(ValueError):
    """The bytes are no endpoint that this reader can use. The message says which field and why."""


_Text = Annotated[str, Field(max_length=1_024)]


class _Record(BaseModel):
    """The fields of WorkerEndpoint by their proto names, and the version of this form of them."""

    # Routers and workers are of different releases during an upgrade: a later worker may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Annotated[int, Field(ge=VERSION, le=VERSION)]
    id: Annotated[str, Field(min_length=1, max_length=253)]
    role: _Text = ""
    lane: _Text = ""
    revision: _Text = ""
    address: _Text = ""
    boot_id: Annotated[int, Field(ge=0, le=_MAX_BOOT_ID)] = 0
    pair_uid: _Text = ""
    engine: _Text = ""
    engine_version: _Text = ""


def encode(endpoint: worker_pb2.WorkerEndpoint) -> bytes:
    fields = {field.name: getattr(endpoint, field.name) for field in endpoint.DESCRIPTOR.fields}
    return _Record(version=VERSION, **fields).model_dump_json().encode()


def decode(data: bytes | str) -> worker_pb2.WorkerEndpoint:
    """The endpoint in `data`. Raises EndpointError with a readable reason, and nothing else."""
    record = json_form.read(_Record, data, max_bytes=MAX_BYTES, what="an endpoint", error=EndpointError)
    return worker_pb2.WorkerEndpoint(**record.model_dump(exclude={"version"}))
