"""When KV does not move: the declared degradation or a clear refusal, never a recompute that looks like a transfer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.support.calls import generate, request
from tests.support.processes import LocalFleet, wait_until

from streamserve.contract.runtime_config import FailurePolicy
from streamserve.worker.pipeserve.simulated_tokens import encode, expected_token

PROMPT = "a prompt whose KV is lost on the way"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control") / "faults.json"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, control: Path) -> Iterator[LocalFleet]:
    arguments = {"simulator-control": str(control)}
    with LocalFleet(tmp_path_factory.mktemp("transfer"), engine_arguments=arguments) as running:
        yield running


@pytest.fixture
def broken(control: Path, fleet: LocalFleet) -> Iterator[None]:
    """Every pull of KV fails; afterwards they work and every lane serves again."""
    control.write_text('{"fail_transfers": true}')
    yield
    control.unlink()
    fleet.wait_lanes_ready()


@pytest.mark.usefixtures("broken")
def test_degrade_lets_the_decode_worker_compute_the_prompt_and_says_so(fleet: LocalFleet) -> None:
    fleet.configure(failure_policy=FailurePolicy.DEGRADE)
    for _ in range(3):
        answer = generate(fleet.grpc, request(PROMPT, max_tokens=8, ignore_eos=True))
        assert answer.error is None
        assert answer.token_ids == [expected_token(encode(PROMPT, 4_096), position) for position in range(8)]
        if answer.route.prefill_mode == "local":
            assert answer.usage.kv_transfer_bytes == 0
            return
    raise AssertionError("transfers kept working")


@pytest.mark.usefixtures("broken")
def test_strict_refuses_and_says_that_the_transfer_failed(fleet: LocalFleet) -> None:
    fleet.configure(failure_policy=FailurePolicy.STRICT)
    reasons = set()
    for _ in range(4):
        answer = generate(fleet.grpc, request(PROMPT, max_tokens=8, ignore_eos=True))
        if answer.error is not None:
            assert answer.error.code is grpc.StatusCode.UNAVAILABLE
            assert answer.error.retry_seconds is not None
            assert answer.token_ids == []
            reasons.add(answer.error.reason)
        else:
            assert answer.usage.kv_transfer_bytes > 0, "recomputed behind our back"
    assert "KV_TRANSFER_FAILED" in reasons


def test_afterwards_kv_moves_again(fleet: LocalFleet) -> None:
    """Not at once: the simulator looks at its faults every 0.1 s."""

    def moves() -> bool:
        answer = generate(fleet.grpc, request(PROMPT, max_tokens=8, ignore_eos=True))
        return answer.error is None and answer.route.prefill_mode == "remote" and answer.usage.kv_transfer_bytes > 0

    wait_until(moves, seconds=5.0, what="KV moves")
