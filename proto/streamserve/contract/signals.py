"""WorkerSignals: what a worker tells every router, packed into at most 512 bytes.

Layout, little-endian: a fixed header of 128 bytes, then a tail of at most 384 bytes made of sections
(kind u8, count u8, items). Sections come in the order of their worth and what does not fit is dropped, most
recent workloads kept: acknowledgements (12 bytes each), per-position acceptance (8), workloads (name + 8).

`boot_id` is random per process start, `epoch` rises by one with each publication: a lower epoch of the same boot is
stale, a new boot fences the worker's lane. No clocks are compared: age is measured by the reader from when an epoch
was first seen. Rates are 0 while unknown. Decoding never raises anything but SignalsError.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from streamserve.contract.identity import fingerprint

MAGIC: Final = 0x5353
VERSION: Final = 1
HEADER_BYTES: Final = 128
MAX_BYTES: Final = 512
MAX_POSITIONS: Final = 16
MAX_ACKS: Final = 16
MAX_WORKLOADS: Final = 64
MAX_WORKLOAD_BYTES: Final = 32
_U32: Final = 2**32 - 1

# magic, version, role, flags, depth, running, waiting, waiting prompt tokens, max running,
# boot, epoch, uid fingerprint, generation, step, kv blocks total, kv blocks used,
# prefill tokens/s, step base s, step per request s, mean emitted tokens per step, drafted, accepted,
# transfer bytes/s, revision fingerprint
_HEADER: Final = struct.Struct("<HBBHBx IIII QQQ QI II ffff QQ f Q 16x")
_ACK: Final = struct.Struct("<IQ")
_POSITION: Final = struct.Struct("<II")
_WORKLOAD: Final = struct.Struct("<ff")

if _HEADER.size != HEADER_BYTES:
    raise AssertionError(f"the header has {_HEADER.size} bytes")


class SignalsError(ValueError):
    """The bytes are no WorkerSignals of a version that this reader knows."""


class Role(IntEnum):
    PREFILL = 1
    DECODE = 2


class Flags(IntFlag):
    NONE = 0
    DRAINING = 1
    ENGINE_DEAD = 2
    SPECULATION_FALLBACK = 4
    CONFIG_REJECTED = 8


# As plain numbers: a decision asks every worker, and `&` of two enums is slow.
_DRAINING: Final = int(Flags.DRAINING)
_ENGINE_DEAD: Final = int(Flags.ENGINE_DEAD)


class _Section(IntEnum):
    ACKS = 1
    POSITIONS = 2
    WORKLOADS = 3


@dataclass(frozen=True, slots=True)
class Ack:
    """The highest dispatch sequence of one router that this worker has admitted."""

    router_id: int
    sequence: int


@dataclass(frozen=True, slots=True)
class PositionAcceptance:
    """Drafts proposed and accepted at one depth position, in a recent window."""

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class WorkloadAcceptance:
    """What one workload class does lately on this worker."""

    name: str
    mean_emitted_tokens_per_step: float
    mean_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSignals:
    """One publication. Counters are totals since boot; tokens, blocks and requests are counts now."""

    role: Role
    boot_id: int
    epoch: int
    uid_fingerprint: int
    config_generation: int = 0
    config_step: int = 0
    revision_fingerprint: int = 0
    flags: Flags = Flags.NONE
    depth: int = 0
    running_requests: int = 0
    waiting_requests: int = 0
    waiting_prompt_tokens: int = 0
    max_running_requests: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    prefill_tokens_per_second: float = 0.0
    step_base_seconds: float = 0.0
    step_per_request_seconds: float = 0.0
    mean_emitted_tokens_per_step: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    transfer_bytes_per_second: float = 0.0
    acks: tuple[Ack, ...] = ()
    positions: tuple[PositionAcceptance, ...] = ()
    workloads: tuple[WorkloadAcceptance, ...] = ()

    def step_seconds(self, batch: int) -> float:
        """Predicted time of a decode step with `batch` requests: base + per_request x batch."""
        return self.step_base_seconds + self.step_per_request_seconds * batch

    @property
    def draining(self) -> bool:
        return bool(int(self.flags) & _DRAINING)

    @property
    def engine_dead(self) -> bool:
        return bool(int(self.flags) & _ENGINE_DEAD)

    def serves_pair(self, uid: str) -> bool:
        return self.uid_fingerprint == fingerprint(uid)


def encode(signals: WorkerSignals) -> bytes:
    """The packed form, at most MAX_BYTES. Workloads must come most recent first. Raises SignalsError on a value
    that does not fit its field."""
    try:
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            signals.role,
            signals.flags,
            signals.depth,
            signals.running_requests,
            signals.waiting_requests,
            min(signals.waiting_prompt_tokens, _U32),
            signals.max_running_requests,
            signals.boot_id,
            signals.epoch,
            signals.uid_fingerprint,
            signals.config_generation,
            signals.config_step,
            signals.kv_blocks_total,
            signals.kv_blocks_used,
            signals.prefill_tokens_per_second,
            signals.step_base_seconds,
            signals.step_per_request_seconds,
            signals.mean_emitted_tokens_per_step,
            signals.drafted_tokens,
            signals.accepted_tokens,
            signals.transfer_bytes_per_second,
            signals.revision_fingerprint,
        )
        tail = b"".join(_sections(signals, MAX_BYTES - HEADER_BYTES))
    except (struct.error, OverflowError) as error:
        raise SignalsError(f"a value does not fit its field: {error}") from None
    return header + tail


def _sections(signals: WorkerSignals, room: int) -> list[bytes]:
    packed: list[tuple[_Section, list[bytes]]] = [
        (_Section.ACKS, [_ACK.pack(ack.router_id, ack.sequence) for ack in signals.acks[:MAX_ACKS]]),
        (
            _Section.POSITIONS,
            [_POSITION.pack(min(p.drafted, _U32), min(p.accepted, _U32)) for p in signals.positions[:MAX_POSITIONS]],
        ),
        (_Section.WORKLOADS, [_pack_workload(w) for w in signals.workloads[:MAX_WORKLOADS]]),
    ]
    out: list[bytes] = []
    for kind, items in packed:
        kept: list[bytes] = []
        left = room - 2
        for item in items:
            if len(item) > left:
                break
            kept.append(item)
            left -= len(item)
        if kept:
            out.append(bytes((kind, len(kept))) + b"".join(kept))
            room = left
    return out


def workload_name(name: str) -> str:
    """The name as signals carry it: as many whole characters as 32 bytes of UTF-8 hold. Look workloads up by this."""
    return name.encode()[:MAX_WORKLOAD_BYTES].decode(errors="ignore")


def _pack_workload(workload: WorkloadAcceptance) -> bytes:
    name = workload_name(workload.name).encode()
    return (
        bytes((len(name),)) + name + _WORKLOAD.pack(workload.mean_emitted_tokens_per_step, workload.mean_output_tokens)
    )


def decode(data: bytes) -> WorkerSignals:
    """The signals in `data`. Raises SignalsError on garbage, on another version, and on a number that no worker
    could mean (not finite, negative, more used than there is)."""
    if not HEADER_BYTES <= len(data) <= MAX_BYTES:
        raise SignalsError(f"{len(data)} bytes is not between {HEADER_BYTES} and {MAX_BYTES}")
    f = _HEADER.unpack_from(data)
    if f[0] != MAGIC or f[1] != VERSION:
        raise SignalsError(f"magic {f[0]:#06x} version {f[1]} is not {MAGIC:#06x} version {VERSION}")
    try:
        role = Role(f[2])
    except ValueError:
        raise SignalsError(f"role {f[2]} is not known") from None
    rates = (*f[16:20], f[22])
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise SignalsError("a rate is negative or not a finite number")
    if f[15] > f[14]:
        raise SignalsError(f"{f[15]} KV blocks used of {f[14]}")
    if f[21] > f[20]:
        raise SignalsError(f"{f[21]} drafts accepted of {f[20]}")
    acks, positions, workloads = _read_sections(data)
    return WorkerSignals(
        role=role,
        flags=Flags(f[3]),
        depth=f[4],
        running_requests=f[5],
        waiting_requests=f[6],
        waiting_prompt_tokens=f[7],
        max_running_requests=f[8],
        boot_id=f[9],
        epoch=f[10],
        uid_fingerprint=f[11],
        config_generation=f[12],
        config_step=f[13],
        kv_blocks_total=f[14],
        kv_blocks_used=f[15],
        prefill_tokens_per_second=f[16],
        step_base_seconds=f[17],
        step_per_request_seconds=f[18],
        mean_emitted_tokens_per_step=f[19],
        drafted_tokens=f[20],
        accepted_tokens=f[21],
        transfer_bytes_per_second=f[22],
        revision_fingerprint=f[23],
        acks=acks,
        positions=positions,
        workloads=workloads,
    )


def _read_sections(
    data: bytes,
) -> tuple[tuple[Ack, ...], tuple[PositionAcceptance, ...], tuple[WorkloadAcceptance, ...]]:
    acks: tuple[Ack, ...] = ()
    positions: tuple[PositionAcceptance, ...] = ()
    workloads: list[WorkloadAcceptance] = []
    at = HEADER_BYTES
    try:
        while at < len(data):
            kind, count = data[at], data[at + 1]
            at += 2
            if kind == _Section.ACKS:
                acks = tuple(Ack(*_ACK.unpack_from(data, at + i * _ACK.size)) for i in range(count))
                at += count * _ACK.size
            elif kind == _Section.POSITIONS:
                positions = tuple(
                    PositionAcceptance(*_POSITION.unpack_from(data, at + i * _POSITION.size)) for i in range(count)
                )
                at += count * _POSITION.size
            elif kind == _Section.WORKLOADS:
                for _ in range(count):
                    size = data[at]
                    name = data[at + 1 : at + 1 + size].decode(errors="replace")
                    at += 1 + size
                    emitted, output = _WORKLOAD.unpack_from(data, at)
                    at += _WORKLOAD.size
                    if not all(math.isfinite(x) and x >= 0 for x in (emitted, output)):
                        raise SignalsError(f"workload {name!r} has a rate that is negative or not finite")
                    workloads.append(WorkloadAcceptance(name, emitted, output))
            else:
                raise SignalsError(f"section {kind} is not known")
    except (struct.error, IndexError):
        raise SignalsError("the tail ends in the middle of a section") from None
    if any(p.accepted > p.drafted for p in positions):
        raise SignalsError("a position has more drafts accepted than proposed")
    return acks, positions, tuple(workloads)
