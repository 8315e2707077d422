"""The scheduler's own record of what it did, shared with the worker's main process through one small mapped file.

The engine core writes it between steps; anyone with the path may read it, without IPC and without waiting. Layout,
little-endian, version 3:

    offset 0      header   magic, version, sequence number
    offset 64     figures  two slots of `Figures`, one fixed struct each
    offset 4096   ring     RING finished requests, 48 bytes each

The writer fills the slot that nobody reads, then raises the sequence number, whose parity names the slot to read. So a
reader never waits for a writer that was put off its core in the middle of writing; it reads again only when the number
moved while it read. A ring entry is guarded by its key, which is zero while the entry is being written. Where the
engine core ends a request (end of sequence, length), its entry is written before its last output is emitted, so
whoever has seen that finds the entry, until RING later requests have overwritten it. A stop string is found by vLLM's
main process, which emits the last output first and tells the core then: that entry comes later, by a step or so.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from streamserve.worker.specustream.policy import MAX_DEPTH

MAGIC = b"SSRECORD"
VERSION = 3
RING = 4096

_HEADER = struct.Struct("<8sIIQ")
_SEQUENCE = struct.Struct("<Q")
_SEQUENCE_AT = 16
_FIGURES_AT = 64
_RING_AT = 4096
_ENTRY = struct.Struct("<QIIIIQQd")
_KEY = struct.Struct("<Q")
_SIZE = _RING_AT + RING * _ENTRY.size
_FALLBACK_BYTES = 160
_READ_ATTEMPTS = 100

DEPTHS = MAX_DEPTH + 1


class RecordError(RuntimeError):
    """The file is not a record of this version."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the scheduler knows after its latest step. Counters only grow while the engine lives."""

    steps: int = 0
    """Steps that scheduled at least one token."""
    decode_steps: int = 0
    """Steps in which at least one request was decoding."""
    depth: int = 0
    """Depth chosen in the latest step."""
    running_requests: int = 0
    waiting_requests: int = 0
    waiting_prompt_tokens: int = 0
    """Prompt tokens still to be computed here, of waiting requests and of those in the middle of prefill."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_request_steps: int = 0
    """Sum over decode steps of the requests decoding in them."""
    emitted_tokens: int = 0
    """Tokens that those emitted, before any cut at a stop."""
    prefill_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    generation: int = 0
    config_step: int = 0
    finished_requests: int = 0
    transfers_received: int = 0
    """Requests whose prompt KV came from another engine."""
    blocks_received: int = 0
    """KV blocks pulled for them, by the scheduler's own account."""
    fallbacks: int = 0
    """Steps that were scheduled at the static depth because the law raised."""
    step_base_seconds: float = 0.0
    """tau0 of step time = tau0 + tau1 · requests, over recent decode steps."""
    step_per_request_seconds: float = 0.0
    last_step_seconds: float = 0.0
    prefill_tokens_per_second: float = 0.0
    updated_at: float = 0.0
    """CLOCK_MONOTONIC of the writer, which all processes of a machine share."""
    depth_steps: tuple[int, ...] = (0,) * DEPTHS
    """Decode steps scheduled at each depth chosen, 0..16."""
    drafted_by_position: tuple[int, ...] = (0,) * MAX_DEPTH
    accepted_by_position: tuple[int, ...] = (0,) * MAX_DEPTH
    fallback: str = ""
    """Why the law was given up last; empty while it never was."""


_INTEGERS = tuple(field.name for field in fields(Figures) if field.type == "int")
_FLOATS = tuple(field.name for field in fields(Figures) if field.type == "float")
_FIGURES = struct.Struct(f"<{len(_INTEGERS)}q{len(_FLOATS)}d{DEPTHS}q{MAX_DEPTH}q{MAX_DEPTH}q{_FALLBACK_BYTES}s")
_SLOTS_AT = (_FIGURES_AT, _FIGURES_AT + _FIGURES.size)
assert _SLOTS_AT[1] + _FIGURES.size <= _RING_AT


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request: `depth_mask` has bit k when a step in which it was decoding had depth k chosen."""

    depth_mask: int
    drafted: int
    accepted: int
    steps: int
    external_tokens: int = 0
    """Prompt tokens whose KV came from another engine."""
    blocks_received: int = 0
    """KV blocks pulled for them."""
    added_at: float = 0.0
    """When the scheduler got it, by CLOCK_MONOTONIC: tells apart requests that had one id after each other."""


def key_of(request_id: str) -> int:
    """The ring's key of a request id: 64 bits, never zero."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little") or 1


class RecordWriter:
    """The one writer; lives in the engine core. A write of the figures costs a few microseconds."""

    def __init__(self, path: str | Path) -> None:
        """Create (or start over) the record at `path`, readable by its owner only."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, _SIZE)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._sequence = 0
        self._next = 0
        self.write_values([0] * len(_INTEGERS), [0.0] * len(_FLOATS), [0] * DEPTHS, [0] * MAX_DEPTH, [0] * MAX_DEPTH)
        _HEADER.pack_into(self._map, 0, MAGIC, VERSION, os.getpid(), self._sequence)

    def write(self, figures: Figures) -> None:
        """Publish `figures`; convenient, for tests and simulators."""
        self.write_values(
            [getattr(figures, name) for name in _INTEGERS],
            [getattr(figures, name) for name in _FLOATS],
            figures.depth_steps,
            figures.drafted_by_position,
            figures.accepted_by_position,
            figures.fallback,
        )

    def write_values(
        self,
        integers: Sequence[int],
        floats: Sequence[float],
        depth_steps: Sequence[int],
        drafted: Sequence[int],
        accepted: Sequence[int],
        fallback: str = "",
    ) -> None:
        """Publish values in the order of the fields of `Figures`, integers and floats apart (the hot path)."""
        text = fallback.encode()[:_FALLBACK_BYTES]
        following = self._sequence + 1
        slot = _SLOTS_AT[following & 1]
        _FIGURES.pack_into(self._map, slot, *integers, *floats, *depth_steps, *drafted, *accepted, text)
        self._sequence = following
        _SEQUENCE.pack_into(self._map, _SEQUENCE_AT, following)

    def finish(self, request_id: str, record: RequestRecord) -> None:
        """Append a finished request, overwriting the oldest."""
        at = _RING_AT + (self._next % RING) * _ENTRY.size
        self._next += 1
        key = key_of(request_id)
        _KEY.pack_into(self._map, at, 0)
        _ENTRY.pack_into(
            self._map,
            at,
            0,
            record.depth_mask,
            record.drafted,
            record.accepted,
            record.steps,
            record.external_tokens,
            record.blocks_received,
            record.added_at,
        )
        _KEY.pack_into(self._map, at, key)

    def close(self) -> None:
        self._map.close()


class Record:
    """A reader. Cheap to keep open; every call reads the mapped memory anew."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map = mapped
        self._latest = Figures()

    @staticmethod
    def open(path: str | Path) -> Record:
        """Open the record at `path`; raises RecordError when it is not one, or of another version."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                raise RecordError(f"{path} is not a scheduler record: {os.fstat(descriptor).st_size} bytes")
            mapped = mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        magic, version, _, _ = _HEADER.unpack_from(mapped, 0)
        if magic != MAGIC or version != VERSION:
            mapped.close()
            raise RecordError(f"{path} is not a scheduler record of version {VERSION}")
        return Record(mapped)

    def snapshot(self) -> Figures:
        """The latest figures; the last ones read when the writer overtook every attempt."""
        for _ in range(_READ_ATTEMPTS):
            (before,) = _SEQUENCE.unpack_from(self._map, _SEQUENCE_AT)
            values = _FIGURES.unpack_from(self._map, _SLOTS_AT[before & 1])
            (after,) = _SEQUENCE.unpack_from(self._map, _SEQUENCE_AT)
            if before == after:
                self._latest = _figures(values)
                break
        return self._latest

    def finished(self, request_id: str, *, since: float = 0.0) -> RequestRecord | None:
        """The newest entry of `request_id` that was added at `since` or later; None when there is none (yet), or it
        was overwritten."""
        wanted = key_of(request_id)
        newest = self.snapshot().finished_requests
        # The figures may be a step behind the ring, so look a little ahead of them first.
        for offset in range(-64, RING - 64):
            at = _RING_AT + ((newest - 1 - offset) % RING) * _ENTRY.size
            (key,) = _KEY.unpack_from(self._map, at)
            if key != wanted:
                continue
            entry = _ENTRY.unpack_from(self._map, at)
            if entry[0] != wanted or _KEY.unpack_from(self._map, at)[0] != wanted:
                continue
            found = RequestRecord(*entry[1:])
            if found.added_at >= since:
                return found
        return None

    def close(self) -> None:
        self._map.close()


def _figures(values: tuple[object, ...]) -> Figures:
    integers = dict(zip(_INTEGERS, values, strict=False))
    at = len(_INTEGERS)
    floats = dict(zip(_FLOATS, values[at:], strict=False))
    at += len(_FLOATS)
    text = values[-1]
    assert isinstance(text, bytes)
    return Figures(
        **integers,  # type: ignore[arg-type]
        **floats,  # type: ignore[arg-type]
        depth_steps=values[at : at + DEPTHS],  # type: ignore[arg-type]
        drafted_by_position=values[at + DEPTHS : at + DEPTHS + MAX_DEPTH],  # type: ignore[arg-type]
        accepted_by_position=values[at + DEPTHS + MAX_DEPTH : -1],  # type: ignore[arg-type]
        fallback=text.rstrip(b"\0").decode(errors="replace"),
    )
