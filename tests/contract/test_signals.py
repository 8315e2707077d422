"""Packed signals: what is written is read back, in at most 512 bytes, and garbage is refused by one exception."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract import signals
from streamserve.contract.signals import (
    Ack,
    Flags,
    PositionAcceptance,
    Role,
    SignalsError,
    WorkerSignals,
    WorkloadAcceptance,
)

_u32 = st.integers(0, 2**32 - 1)
_u64 = st.integers(0, 2**64 - 1)
_rate = st.floats(0, 1e9, width=32)


@st.composite
def any_signals(draw: st.DrawFn) -> WorkerSignals:
    total, drafted = draw(_u32), draw(_u64)
    return WorkerSignals(
        role=draw(st.sampled_from(Role)),
        boot_id=draw(_u64),
        epoch=draw(_u64),
        uid_fingerprint=draw(_u64),
        config_generation=draw(_u64),
        config_step=draw(_u32),
        revision_fingerprint=draw(_u64),
        flags=draw(st.sampled_from([Flags.NONE, Flags.DRAINING, Flags.DRAINING | Flags.ENGINE_DEAD])),
        depth=draw(st.integers(0, 16)),
        running_requests=draw(_u32),
        waiting_requests=draw(_u32),
        waiting_prompt_tokens=draw(_u32),
        max_running_requests=draw(_u32),
        kv_blocks_total=total,
        kv_blocks_used=draw(st.integers(0, total)),
        prefill_tokens_per_second=draw(_rate),
        step_base_seconds=draw(_rate),
        step_per_request_seconds=draw(_rate),
        mean_emitted_tokens_per_step=draw(_rate),
        drafted_tokens=drafted,
        accepted_tokens=draw(st.integers(0, drafted)),
        transfer_bytes_per_second=draw(_rate),
        acks=tuple(draw(st.lists(st.builds(Ack, _u32, _u64), max_size=40))),
        positions=tuple(
            PositionAcceptance(d, a)
            for d, a in draw(st.lists(st.tuples(_u32, _u32).map(lambda p: (max(p), min(p))), max_size=16))
        ),
        workloads=tuple(draw(st.lists(st.builds(WorkloadAcceptance, st.text(max_size=32), _rate, _rate), max_size=64))),
    )


@given(any_signals())
def test_what_is_written_is_read_back_and_never_over_512_bytes(given_signals: WorkerSignals) -> None:
    packed = signals.encode(given_signals)
    back = signals.decode(packed)
    assert 128 <= len(packed) <= 512
    for name in ("role", "boot_id", "epoch", "flags", "depth", "waiting_prompt_tokens", "kv_blocks_used"):
        assert getattr(back, name) == getattr(given_signals, name)
    assert back.acks == given_signals.acks[: len(back.acks)]
    assert back.positions == given_signals.positions[: len(back.positions)]
    assert signals.encode(back) == packed or any("\ufffd" in w.name for w in back.workloads)


@given(st.binary(max_size=600))
def test_random_bytes_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(SignalsError):
        signals.decode(data)


@given(any_signals(), st.integers(0, 511), st.integers(0, 255))
def test_one_damaged_byte_is_read_or_refused_but_never_crashes(
    given_signals: WorkerSignals, at: int, value: int
) -> None:
    packed = bytearray(signals.encode(given_signals))
    packed[at % len(packed)] = value
    try:
        back = signals.decode(bytes(packed))
    except SignalsError:
        return
    assert math.isfinite(back.step_base_seconds)
    assert back.accepted_tokens <= back.drafted_tokens


def _sound() -> WorkerSignals:
    return WorkerSignals(role=Role.DECODE, boot_id=1, epoch=1, uid_fingerprint=1, kv_blocks_total=4, drafted_tokens=4)


def test_a_worker_that_claims_more_blocks_than_it_has_is_refused() -> None:
    packed = bytearray(signals.encode(_sound()))
    used = WorkerSignals(role=Role.DECODE, boot_id=1, epoch=1, uid_fingerprint=1, kv_blocks_total=4, kv_blocks_used=4)
    at = next(i for i, (a, b) in enumerate(zip(packed, signals.encode(used), strict=False)) if a != b)
    packed[at] = 5
    with pytest.raises(SignalsError, match="5 KV blocks used of 4"):
        signals.decode(bytes(packed))


def test_a_version_from_the_future_is_refused_by_its_number() -> None:
    packed = bytearray(signals.encode(_sound()))
    packed[2] = 9
    with pytest.raises(SignalsError, match="version 9"):
        signals.decode(bytes(packed))


def test_what_does_not_fit_is_dropped_workloads_first_and_the_most_recent_kept() -> None:
    full = WorkerSignals(
        role=Role.DECODE,
        boot_id=1,
        epoch=1,
        uid_fingerprint=1,
        acks=tuple(Ack(i, i) for i in range(16)),
        positions=tuple(PositionAcceptance(9, 3) for _ in range(16)),
        workloads=tuple(WorkloadAcceptance(f"workload-{i:02}", 1.0, 1.0) for i in range(64)),
    )
    back = signals.decode(signals.encode(full))
    assert len(back.acks) == 16
    assert len(back.positions) == 16
    assert [w.name for w in back.workloads] == [f"workload-{i:02}" for i in range(len(back.workloads))]
    assert 0 < len(back.workloads) < 64


@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=32))
def test_a_workload_is_found_again_by_the_name_that_signals_carry(name: str) -> None:
    sent = replace(_sound(), workloads=(WorkloadAcceptance(name, 2.0, 9.0),))
    (back,) = signals.decode(signals.encode(sent)).workloads
    assert back.name == signals.workload_name(name)
    assert name.startswith(back.name)
    assert back.name == name or len(name.encode()) > 32
