"""Whether a request may have had to wait inside an engine: what of a worker's signals says so, and until when."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from streamserve.contract.signals import Ack, Flags, Role, WorkerSignals
from streamserve.router.flowguard.view import KvGeometry
from streamserve.router.signals.occupancy import Occupancy

FULL = WorkerSignals(
    role=Role.DECODE,
    boot_id=1,
    epoch=1,
    uid_fingerprint=1,
    running_requests=16,
    max_running_requests=16,
    kv_blocks_total=100,
    kv_blocks_used=50,
)
KV = KvGeometry(16, 1)
NEVER = -math.inf

# name: (role, changes, whether it has no room for a request of 32 tokens, two blocks)
STATES: dict[str, tuple[Role, dict[str, Any], bool]] = {
    "every place is taken": (Role.DECODE, {}, True),
    "a place is free": (Role.DECODE, {"running_requests": 15, "waiting_requests": 3}, False),
    "a place is free and the KV cache is short": (Role.DECODE, {"running_requests": 3, "kv_blocks_used": 99}, True),
    "a place is free and the KV cache just has room": (
        Role.DECODE,
        {"running_requests": 3, "kv_blocks_used": 98},
        False,
    ),
    "a worker that does not say how many it runs": (Role.DECODE, {"max_running_requests": 0}, False),
    "prompts wait": (Role.PREFILL, {"running_requests": 1, "waiting_prompt_tokens": 9}, True),
    "no prompt waits": (Role.PREFILL, {"running_requests": 16}, False),
}


@pytest.mark.parametrize(("role", "changes", "full"), STATES.values(), ids=STATES)
def test_there_is_no_room_where(role: Role, changes: dict[str, Any], full: bool) -> None:
    signals = replace(FULL, role=role, **changes)
    occupancy = Occupancy()
    occupancy.saw(signals, 5.0)
    until = occupancy.no_room_until(signals, KV, 32, begun=False, streamed_at=lambda: 6.0, now=7.0)
    assert (until > NEVER) is full


def test_it_works_as_long_as_its_steps_move_a_figure() -> None:
    occupancy = Occupancy()
    for second in range(10):
        signals = replace(FULL, epoch=second, accepted_tokens=10 * min(second, 4), drafted_tokens=10 * min(second, 4))
        occupancy.saw(signals, float(second))
    assert occupancy.no_room_until(signals, KV, 32, begun=False, streamed_at=lambda: NEVER, now=9.0) == 4.0


def test_what_a_process_says_while_its_engine_hangs_is_no_work() -> None:
    occupancy = Occupancy()
    occupancy.saw(FULL, 1.0)
    for second in range(2, 6):
        occupancy.saw(
            replace(
                FULL,
                epoch=second,
                acks=(Ack(7, second),),
                waiting_requests=second,
                config_generation=second,
                flags=Flags.CONFIG_REJECTED,
                transfer_bytes_per_second=float(second),
            ),
            float(second),
        )
    assert occupancy.no_room_until(FULL, KV, 32, begun=False, streamed_at=lambda: NEVER, now=6.0) == 1.0


def test_answers_that_go_on_show_that_it_works_where_no_figure_moves() -> None:
    occupancy = Occupancy()
    for second in range(10):
        occupancy.saw(replace(FULL, epoch=second), float(second))
    assert occupancy.no_room_until(FULL, KV, 32, begun=False, streamed_at=lambda: 8.5, now=9.5) == 8.5


def test_once_there_is_room_the_time_without_it_is_over() -> None:
    occupancy = Occupancy()
    occupancy.saw(FULL, 1.0)
    free = replace(FULL, running_requests=3, drafted_tokens=5)
    occupancy.saw(free, 2.0)
    assert occupancy.no_room_until(free, KV, 32, begun=False, streamed_at=lambda: 3.0, now=3.0) == 1.0
    # A prompt that does not fit into what is left of the KV cache waits on.
    assert occupancy.no_room_until(free, KV, 16 * 51, begun=False, streamed_at=lambda: 3.0, now=3.5) == 3.0


def test_a_request_that_has_begun_waits_for_kv_blocks_alone() -> None:
    occupancy = Occupancy()
    occupancy.saw(FULL, 1.0)
    assert occupancy.no_room_until(FULL, KV, 32, begun=True, streamed_at=lambda: 1.5, now=2.0) == NEVER
    assert occupancy.no_room_until(FULL, KV, 16 * 51, begun=True, streamed_at=lambda: 1.5, now=2.5) == 1.5


def test_of_a_worker_that_has_said_nothing_nothing_is_known() -> None:
    assert Occupancy().no_room_until(None, None, 32, begun=False, streamed_at=lambda: 5.0, now=5.0) == NEVER
