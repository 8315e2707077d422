"""What surrounds vLLM and needs no vLLM: the depth table, handles, logprobs, seeds, meters, NIXL's pause."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.errors import TransferFailed
from streamserve.contract.sampling import Sampling
from streamserve.runtime.errors import SetupError
from streamserve.worker.pipeserve import nixl, vllm_args, vllm_requests
from streamserve.worker.pipeserve.vllm_meters import Meters
from streamserve.worker.specustream.record import Figures


@given(max_depth=st.integers(1, 16), max_running=st.integers(1, 1024))
def test_the_depth_table_covers_every_batch_once_and_only_falls(max_depth: int, max_running: int) -> None:
    table = vllm_args.depth_table(max_depth, max_running)
    assert table[0][0] == 1
    assert table[-1][1] == max_running
    for (_, last, deeper), (first, _, depth) in pairwise(table):
        assert first == last + 1
        assert depth < deeper
    assert all(first <= last and 0 <= depth <= max_depth for first, last, depth in table)
    if max_running > max_depth:
        assert {row[2] for row in table} == set(range(max_depth + 1))


def test_both_sides_of_a_lane_have_the_same_drafter_and_prefill_never_drafts() -> None:
    sides = {
        role: vllm_args.speculative_config(method="DraftModel", draft="d", max_depth=6, role=role, max_running=64)
        for role in ("prefill", "decode")
    }
    assert sides["prefill"] is not None and sides["decode"] is not None
    assert sides["prefill"].pop("num_speculative_tokens_per_batch_size") == [[1, 64, 0]]
    sides["decode"].pop("num_speculative_tokens_per_batch_size")
    assert sides["prefill"] == sides["decode"] == {"method": "draft_model", "num_speculative_tokens": 6, "model": "d"}


@pytest.mark.parametrize(
    ("method", "draft", "says"),
    [
        ("Medusa", "d", "not in this release"),
        ("DraftModel", None, "needs a draft model"),
        ("Eagle", "", "needs a draft"),
    ],
)
def test_a_method_that_cannot_work_is_refused(method: str, draft: str | None, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        vllm_args.speculative_config(method=method, draft=draft, max_depth=3, role="decode", max_running=8)


def test_a_handle_reads_back_and_garbage_is_a_failed_transfer() -> None:
    assert vllm_requests.unpack(vllm_requests.pack({"remote_port": 5})) == {"remote_port": 5}
    for garbage in (b"", b"\xff", b"[]", b"3", b'{"version": 2, "vllm": {}}', b'{"version": 1, "vllm": 3}'):
        with pytest.raises(TransferFailed):
            vllm_requests.unpack(garbage)


@dataclass(frozen=True)
class Ranked:
    """A vLLM Logprob, as far as it is read."""

    logprob: float
    rank: int
    decoded_token: str | None = " word"


MOST_LIKELY = {5: Ranked(-0.5, 1), 6: Ranked(-1.5, 2), 7: Ranked(-2.5, 3)}
# name: (sampled token, vLLM's entry, how many were asked for, the tokens that the answer names)
ENTRIES: dict[str, tuple[int, dict[int, Ranked], int, list[int]]] = {
    "a sampled token below the most likely ones": (9, {9: Ranked(-7.0, 40)} | MOST_LIKELY, 3, [5, 6, 7]),
    "a sampled token among the most likely ones": (6, {6: Ranked(-1.5, 2)} | MOST_LIKELY, 3, [5, 6, 7]),
    "none asked for": (9, {9: Ranked(-7.0, 40)}, 0, []),
    "none asked for, and the most likely token sampled": (5, {5: Ranked(-0.5, 1)}, 0, []),
    "a sampled token as likely as the last of them": (9, {9: Ranked(-2.5, 3)} | MOST_LIKELY, 3, [5, 6, 9]),
}


@pytest.mark.parametrize(("sampled", "entry", "count", "want"), ENTRIES.values(), ids=ENTRIES)
def test_as_many_most_likely_tokens_are_named_as_were_asked_for(
    sampled: int, entry: dict[int, Ranked], count: int, want: list[int]
) -> None:
    (position,) = vllm_requests.logprobs_of([sampled], [entry], count=count)
    one = position.sampled
    assert (one.token_id, one.logprob, one.text) == (sampled, entry[sampled].logprob, entry[sampled].decoded_token)
    told = [(each.token_id, each.logprob, each.text) for each in position.top]
    assert told == [(token, entry[token].logprob, entry[token].decoded_token) for token in want]


def test_no_logprobs_are_told_where_none_were_asked_for() -> None:
    assert vllm_requests.logprobs_of([5], None, count=3) == ()
    assert vllm_requests.logprobs_of([5], [MOST_LIKELY], count=None) == ()


# The seed of a request: the one that vLLM is given. For vLLM -1 is no seed, and no other number is.
SEEDS = {None: None, 0: 0, 1: 1, -2: -2, -(2**63): -(2**63), 2**63 - 1: 2**63 - 1, -1: 2**63 - 1}


@pytest.mark.parametrize(("seed", "want"), SEEDS.items(), ids=[f"seed {seed}" for seed in SEEDS])
def test_a_seed_reaches_vllm_as_a_seed(seed: int | None, want: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(SamplingParams=dict, RequestOutputKind=SimpleNamespace(DELTA="delta"))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", stand_in)
    params = vllm_requests.answer_params(Sampling(seed=seed), max_tokens=1, speculative=True)
    assert params["seed"] == want


def figures(drafted: int, accepted: int) -> Figures:
    zeros = (0,) * 15
    return Figures(
        decode_request_steps=drafted,
        emitted_tokens=drafted + accepted,
        drafted_by_position=(drafted, *zeros),
        accepted_by_position=(accepted, *zeros),
        blocks_received=3,
        total_blocks=10,
        free_blocks=4,
    )


def test_rates_are_those_of_the_recent_window() -> None:
    meters = Meters()

    def at(now: float, counted: Figures) -> tuple[float, tuple[int, int]]:
        snapshot = meters.snapshot(counted, now=now, death="", bytes_per_block=100, max_depth=1)
        return snapshot.mean_emitted_tokens_per_step, snapshot.positions[0]

    assert at(0.0, figures(100, 90)) == (1.9, (100, 90))
    for second in range(1, 30):
        rate, position = at(float(second), figures(100 + 10 * second, 90))
    assert rate == pytest.approx(1.0)
    assert position[1] == 0


def test_transfers_are_summed_from_vllms_own_counts() -> None:
    meters = Meters()
    meters.observe_transfers({"bytes_transferred": [100, 200], "transfer_duration": [0.1, 0.1]})
    meters.observe_transfers({"bytes_transferred": [], "transfer_duration": [], "num_failed_handshakes": [1]})
    snapshot = meters.snapshot(figures(0, 0), now=0.0, death="gone", bytes_per_block=100, max_depth=0)
    assert (snapshot.kv_bytes_received, snapshot.kv_transfers_received, snapshot.kv_transfers_failed) == (300, 2, 1)
    assert (snapshot.kv_bytes_expected, snapshot.kv_blocks_used, snapshot.alive) == (300, 6, False)
    assert snapshot.transfer_bytes_per_second == pytest.approx(1500, rel=0.1)


@pytest.mark.parametrize(("text", "want"), [(None, nixl.DEFAULT_DELAY_MICROSECONDS), ("0", 0), ("250", 250)])
def test_the_pause_of_nixls_thread_is_a_setting(text: str | None, want: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nixl.DELAY_ENV, raising=False)
    if text is not None:
        monkeypatch.setenv(nixl.DELAY_ENV, text)
    assert nixl.thread_delay_microseconds() == want


@pytest.mark.parametrize("text", ["-1", "fast", "1.5", "99999999"])
def test_a_pause_that_is_no_pause_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nixl.DELAY_ENV, text)
    with pytest.raises(ValueError, match=nixl.DELAY_ENV):
        nixl.thread_delay_microseconds()


FAMILY = """
import multiprocessing, sys, time
from streamserve.worker.pipeserve import lifeline

def grandchild():
    lifeline.hold_to_parent()
    time.sleep(60)

def child(path):
    lifeline.hold_to_parent()
    it = multiprocessing.get_context("spawn").Process(target=grandchild)
    it.start()
    open(path, "w").write(str(it.pid))
    time.sleep(60)

if __name__ == "__main__":
    it = multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1],))
    it.start()
    time.sleep(60)
"""


def test_children_of_a_killed_process_are_gone_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    mark = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, str(tmp_path / "family.py"), str(mark)])
    try:
        give_up = time.monotonic() + 20
        while not (mark.exists() and mark.read_text()) and time.monotonic() < give_up:
            time.sleep(0.02)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert int(mark.read_text()) in {process.pid for process in family}
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
    finally:
        parent.kill()
        parent.wait(5)
