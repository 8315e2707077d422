"""What the signals say, given what the engine and the server know."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract import signals
from streamserve.contract.runtime_config import ConfigId
from streamserve.contract.signals import Ack, Flags, Role
from streamserve.worker.monitor.board import SignalBoard
from streamserve.worker.monitor.sample import ServerState, sample
from streamserve.worker.pipeserve.engine import EngineSnapshot
from streamserve.worker.wire import WorkerIdentity

WHO = WorkerIdentity(
    id="lane-0-decode-0",
    role="decode",
    lane="lane-0",
    revision="r1",
    namespace="local",
    pair="tiny",
    pair_uid="u1",
    boot_id=7,
    engine="Simulator",
)
SERVER = ServerState(applied=ConfigId(uid="u1", generation=3, step=2), max_running_requests=64)
ALIVE = EngineSnapshot(alive=True, kv_blocks_total=100)

FLAGS = {
    "all is well": (ALIVE, SERVER, Flags.NONE),
    "draining": (ALIVE, replace(SERVER, draining=True), Flags.DRAINING),
    "the engine is dead": (replace(ALIVE, alive=False), SERVER, Flags.ENGINE_DEAD),
    "a configuration was refused": (ALIVE, replace(SERVER, config_rejected=True), Flags.CONFIG_REJECTED),
    "the law fell back": (replace(ALIVE, speculation_fallback="no data"), SERVER, Flags.SPECULATION_FALLBACK),
    "two at once": (
        replace(ALIVE, alive=False),
        replace(SERVER, draining=True),
        Flags.ENGINE_DEAD | Flags.DRAINING,
    ),
}


@pytest.mark.parametrize(("engine", "server", "want"), FLAGS.values(), ids=FLAGS)
def test_flags(engine: EngineSnapshot, server: ServerState, want: Flags) -> None:
    assert sample(WHO, engine, server, 1).flags == want


WAITING = {
    "the engine knows more than the server": (2, 5, 4, 5),
    "an acknowledged request that the engine does not count yet": (2, 0, 3, 1),
    "the engine counts everything": (3, 1, 4, 1),
    "nothing": (0, 0, 0, 0),
}


@pytest.mark.parametrize(("running", "waiting", "taken", "want"), WAITING.values(), ids=WAITING)
def test_waiting_requests(running: int, waiting: int, taken: int, want: int) -> None:
    engine = replace(ALIVE, running_requests=running, waiting_requests=waiting)
    assert sample(WHO, engine, replace(SERVER, requests_in_engine=taken), 1).waiting_requests == want


def test_identity_configuration_and_acknowledgements_are_carried() -> None:
    got = sample(WHO, ALIVE, replace(SERVER, acks=(Ack(1, 9),)), 12)
    assert (got.role, got.boot_id, got.epoch) == (Role.DECODE, 7, 12)
    assert (got.config_generation, got.config_step) == (3, 2)
    assert got.serves_pair("u1")
    assert got.acks == (Ack(1, 9),)


numbers = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(-5, 2**40)


@given(base=numbers, rate=numbers, used=counts, total=counts, drafted=counts, accepted=counts)
def test_whatever_the_engine_says_the_signals_can_be_sent_and_read(
    base: float, rate: float, used: int, total: int, drafted: int, accepted: int
) -> None:
    engine = EngineSnapshot(
        alive=True,
        kv_blocks_used=used,
        kv_blocks_total=total,
        drafted_tokens=drafted,
        accepted_tokens=accepted,
        step_base_seconds=base,
        prefill_tokens_per_second=rate,
        positions=((3, 9),),
    )
    packed = signals.encode(sample(WHO, engine, SERVER, 1))
    assert signals.decode(packed).epoch == 1


def test_the_board_counts_epochs_and_sees_changes_but_not_the_epoch_itself() -> None:
    running = [0]
    board = SignalBoard(lambda epoch: sample(WHO, replace(ALIVE, running_requests=running[0]), SERVER, epoch))
    assert board.differs_from(None)
    first = signals.decode(board.fresh())
    shown = board.shown
    board.fresh()
    assert not board.differs_from(shown)
    running[0] = 1
    assert board.differs_from(shown)
    assert (first.epoch, signals.decode(board.fresh()).epoch) == (1, 3)
