"""The worker's signals at one moment: what the engine counts, and what only the server knows.

A request that the server has taken but the engine does not count yet is shown as waiting, so that a router which
sees its dispatch acknowledged also sees its work. One whose answer is whole is not: it waits for its reader alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamserve.contract.identity import fingerprint
from streamserve.contract.runtime_config import ConfigId
from streamserve.contract.signals import (
    Ack,
    Flags,
    PositionAcceptance,
    Role,
    WorkerSignals,
    WorkloadAcceptance,
)
from streamserve.worker.pipeserve.engine import EngineSnapshot
from streamserve.worker.wire import WorkerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the server adds to the engine's snapshot."""

    applied: ConfigId
    max_running_requests: int
    requests_in_engine: int = 0
    draining: bool = False
    config_rejected: bool = False
    acks: tuple[Ack, ...] = ()
    workloads: tuple[WorkloadAcceptance, ...] = ()


def sample(identity: WorkerIdentity, engine: EngineSnapshot, server: ServerState, epoch: int) -> WorkerSignals:
    """Total and pure: a snapshot with a number that means nothing gives a signal without it."""
    total = min(max(engine.kv_blocks_total, 0), 2**32 - 1)
    drafted = max(engine.drafted_tokens, 0)
    return WorkerSignals(
        role=Role.PREFILL if identity.role == "prefill" else Role.DECODE,
        boot_id=identity.boot_id,
        epoch=epoch,
        uid_fingerprint=fingerprint(identity.pair_uid),
        revision_fingerprint=fingerprint(identity.revision),
        config_generation=server.applied.generation,
        config_step=server.applied.step,
        flags=_flags(engine, server),
        depth=engine.depth,
        running_requests=engine.running_requests,
        waiting_requests=max(engine.waiting_requests, server.requests_in_engine - engine.running_requests, 0),
        waiting_prompt_tokens=max(engine.waiting_prompt_tokens, 0),
        max_running_requests=server.max_running_requests,
        kv_blocks_total=total,
        kv_blocks_used=min(max(engine.kv_blocks_used, 0), total),
        prefill_tokens_per_second=_rate(engine.prefill_tokens_per_second),
        step_base_seconds=_rate(engine.step_base_seconds),
        step_per_request_seconds=_rate(engine.step_per_request_seconds),
        mean_emitted_tokens_per_step=_rate(engine.mean_emitted_tokens_per_step),
        drafted_tokens=drafted,
        accepted_tokens=min(max(engine.accepted_tokens, 0), drafted),
        transfer_bytes_per_second=_rate(engine.transfer_bytes_per_second),
        acks=server.acks,
        positions=tuple(PositionAcceptance(drafted, min(accepted, drafted)) for drafted, accepted in engine.positions),
        workloads=server.workloads,
    )


def _flags(engine: EngineSnapshot, server: ServerState) -> Flags:
    flags = Flags.NONE
    if server.draining:
        flags |= Flags.DRAINING
    if not engine.alive:
        flags |= Flags.ENGINE_DEAD
    if engine.speculation_fallback:
        flags |= Flags.SPECULATION_FALLBACK
    if server.config_rejected:
        flags |= Flags.CONFIG_REJECTED
    return flags


def _rate(value: float) -> float:
    # 32-bit floats on the wire: beyond them is not a rate but an accident of division.
    return value if math.isfinite(value) and 0 <= value < 1e37 else 0.0
