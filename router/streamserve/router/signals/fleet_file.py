"""The second source of which workers exist: a file that needs no Redis.

    {"workers": [{"id": "lane-0-prefill-0", "role": "prefill", "lane": "lane-0", "revision": "r1",
                  "address": "127.0.0.1:50061"}]}

`streamserve up` writes it; in a cluster the same comes from the per-role headless Services.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_BYTES: Final = 4 * 1024 * 1024


class FleetFileError(ValueError):
    """The file cannot be used; the message says where and why."""


class ListedWorker(BaseModel):
    """One worker as the file names it."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: Annotated[str, Field(min_length=1, max_length=253)]
    role: Literal["prefill", "decode"]
    lane: Annotated[str, Field(min_length=1, max_length=253)]
    revision: str = ""
    address: Annotated[str, Field(min_length=3, max_length=300)]


class _FleetFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    workers: Annotated[tuple[ListedWorker, ...], Field(max_length=2_000)]


def read(path: Path) -> tuple[ListedWorker, ...]:
    """The workers that the file lists. Raises FleetFileError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FleetFileError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise FleetFileError(f"{path} has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        return _FleetFile.model_validate_json(data).workers
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise FleetFileError(f"{path}: {where}: {first['msg']}") from None


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
