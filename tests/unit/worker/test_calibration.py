"""Recorded times: read between, beyond and below what was measured; written and read back the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.contract.sampling import Sampling
from streamserve.runtime.errors import SetupError
from streamserve.worker.pipeserve import calibration, simulator
from streamserve.worker.pipeserve.engine import Chunk, EngineSnapshot, Job, TokenPrompt
from streamserve.worker.pipeserve.recorder import Recorder, Steps, conditional_acceptance, trend

KNOWN = replace(
    calibration.built_in(),
    steps=((1, 0, 0.010), (5, 0, 0.014), (1, 4, 0.018)),
    prefills=((100.0, 0.1), (200.0, 0.3)),
    transfers=((1_000.0, 0.01), (2_000.0, 0.02)),
    acceptance=(0.8, 0.5),
)

STEPS = {
    "as measured": (1, 0, 0.010),
    "between two batches": (3, 0, 0.012),
    "beyond the largest batch, on the last slope": (9, 0, 0.018),
    "between two depths": (1, 2, 0.014),
    "beyond the deepest": (1, 6, 0.022),
    "below the smallest batch never under zero": (0, 0, 0.009),
}


@pytest.mark.parametrize(("batch", "depth", "want"), STEPS.values(), ids=STEPS)
def test_step_seconds(batch: int, depth: int, want: float) -> None:
    assert KNOWN.step_seconds(batch, depth) == pytest.approx(want)


OTHERS = {
    "no tokens cost nothing": (KNOWN.prefill_seconds(0), 0.0),
    "a short prompt lies on the line from zero": (KNOWN.prefill_seconds(50), 0.05),
    "between two prompts": (KNOWN.prefill_seconds(150), 0.2),
    "a long prompt goes on with the last slope": (KNOWN.prefill_seconds(300), 0.5),
    "a small transfer costs the latency": (KNOWN.transfer_seconds(1), 0.01),
    "a large one the bandwidth": (KNOWN.transfer_seconds(4_000), 0.04),
    "a deep draft has the last known acceptance": (KNOWN.accepts(7), 0.5),
}


@pytest.mark.parametrize(("got", "want"), OTHERS.values(), ids=OTHERS)
def test_other_times(got: float, want: float) -> None:
    assert got == pytest.approx(want)


def test_a_calibration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(calibration.dump(KNOWN))
    assert calibration.load(file) == KNOWN


BROKEN = {
    "no file": (None, "cannot read"),
    "no JSON": (b"{", "record it again"),
    "a table without rows": (calibration.dump(KNOWN).replace(b'"transfer_seconds": [', b'"x": ['), "transfer_seconds"),
    "another format": (calibration.dump(KNOWN).replace(b'"format": 1', b'"format": 2'), "format 2"),
    "a step that takes no time": (calibration.dump(KNOWN).replace(b"0.014", b"0"), "step_seconds"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_calibration_is_refused_with_the_field(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "calibration.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SetupError, match=message):
        calibration.load(file)


ACCEPTANCE = {
    "nothing was drafted": ((), ()),
    "each position given the ones before": (((100, 80), (100, 40)), (0.8, 0.5)),
    "positions drafted less often than the first": (((100, 80), (50, 20)), (0.8, 0.5)),
    "behind a position that never held nothing is known": (((10, 0), (10, 0)), (0.0,)),
    "noise above one is cut": (((10, 5), (2, 2)), (0.5, 1.0)),
}


@pytest.mark.parametrize(("positions", "want"), ACCEPTANCE.values(), ids=ACCEPTANCE)
def test_conditional_acceptance(positions: tuple[tuple[int, int], ...], want: tuple[float, ...]) -> None:
    assert conditional_acceptance(positions) == pytest.approx(want)


def test_noise_between_two_sizes_does_not_set_the_slope_beyond_them() -> None:
    """0.2 ms a token; the two longest prompts differ by one token and, by chance, by 40 ms."""
    samples = [(float(tokens), 0.000_2 * tokens) for tokens in range(20, 500, 8)]
    samples += [(500.0, 0.08), (501.0, 0.12)]
    points = trend(samples)
    slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
    assert slope == pytest.approx(0.000_2, rel=0.2)
    assert trend(samples[:2]) == [pytest.approx((24.0, 0.0048))]


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1e-4, 10)), min_size=1, max_size=200))
def test_a_trend_rises_within_what_was_measured(samples: list[tuple[float, float]]) -> None:
    points = trend(samples)
    assert 1 <= len(points) <= 8
    for (x0, y0), (x1, y1) in pairwise(points):
        assert x0 < x1
        assert y0 <= y1
    tolerance = 1e-9
    for index in (0, 1):
        low, high = min(s[index] for s in samples), max(s[index] for s in samples)
        assert all(low - tolerance <= point[index] <= high + tolerance for point in points)


def test_a_bigger_batch_never_takes_less() -> None:
    """Six at once were recorded while nobody computed a prompt beside them, so they were faster than five."""
    steps = Steps()
    for batch, milliseconds in ((1, 30), (3, 59), (5, 86), (6, 47)):
        for _ in range(10):
            steps.add((batch, 3), milliseconds / 1e3)
    steps.add((2, 3), 9.0)
    assert steps.table() == [(1, 3, 0.030), (3, 3, 0.059), (6, 3, pytest.approx(0.0665))]


async def test_a_recorded_simulator_has_the_step_times_that_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "recorded.json"
    initial = RuntimeConfig(id=ConfigId(uid="u", generation=1), speculation=SpeculationConfig(min_depth=2, max_depth=2))
    engine = Recorder(
        await simulator.create(
            role="decode",
            model="",
            draft=None,
            method="DraftModel",
            max_depth=6,
            engine_args={"simulator-step-seconds": "0.02"},
            initial=initial,
            worker_id="w",
            nixl_address=("127.0.0.1", 0),
            run_dir=tmp_path,
        ),
        file,
    )
    engine.start()
    job = Job(request_id="a#1", prompt=TokenPrompt(range(300, 310)), sampling=Sampling(max_tokens=40))
    async for _ in engine.generate(job):
        pass
    await engine.stop()
    recorded = calibration.load(file)
    assert "steps recorded" in recorded.source
    assert recorded.step_seconds(1, 2) == pytest.approx(0.02, rel=0.15)
    assert recorded.kv == engine.info.kv


async def _simulator(
    tmp_path: Path, role: str, replayed: Path, step_seconds: float | None = None
) -> simulator.Simulator:
    """`step_seconds`: of every step; without it they are as replayed."""
    return await simulator.create(
        role=role,
        model="",
        draft=None,
        method="None",
        max_depth=0,
        engine_args={} if step_seconds is None else {"simulator-step-seconds": str(step_seconds)},
        initial=RuntimeConfig(
            id=ConfigId(uid="u", generation=1), speculation=SpeculationConfig(min_depth=0, max_depth=0)
        ),
        worker_id=role,
        nixl_address=("127.0.0.1", 0),
        run_dir=tmp_path,
        calibration=replayed,
    )


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "beside two that run"])
async def test_what_is_recorded_of_a_transfer_replays_as_what_it_was_recorded_from(tmp_path: Path, others: int) -> None:
    """A pull of 50 ms among steps of 20 ms is seen after 60 to 80 ms, and then a step computes the first token."""
    step, pull = 0.02, 0.05
    replayed = tmp_path / "replayed.json"
    replayed.write_bytes(calibration.dump(replace(calibration.built_in(), transfers=((1_000.0, pull),))))
    prompts = await _simulator(tmp_path, "prefill", replayed, 0.001)
    file = tmp_path / "recorded.json"
    engine = Recorder(await _simulator(tmp_path, "decode", replayed, step), file)
    engine.start()

    async def answer(name: str, tokens: int, kv_handle: bytes = b"") -> None:
        job = Job(request_id=name, prompt=TokenPrompt(range(300, 310)), sampling=Sampling(max_tokens=tokens))
        async for _ in engine.generate(job, kv_handle=kv_handle):
            pass

    background = [asyncio.create_task(answer(f"beside {n}", 2_000)) for n in range(others)]
    try:
        for number in range(16):
            job = Job(request_id=f"{number}", prompt=TokenPrompt(range(300, 310)), sampling=Sampling(max_tokens=8))
            await answer(f"{number}", 8, (await prompts.prefill(job)).kv_handle)
            await asyncio.sleep(0.007)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await engine.stop()
        await prompts.stop()
    recorded = calibration.load(file)
    size = calibration.built_in().kv.bytes_per_block
    assert recorded.transfer_seconds(size) == pytest.approx(pull, abs=0.6 * step)
    assert recorded.step_seconds(others + 1, 0) == pytest.approx(step, rel=0.2)


async def test_prompts_that_are_computed_beside_others_are_recorded_too(tmp_path: Path) -> None:
    """Two at once and five at once: of five only the first has the engine to itself."""
    replayed = tmp_path / "replayed.json"
    curve = ((50.0, 0.03), (1_000.0, 0.125))
    replayed.write_bytes(calibration.dump(replace(calibration.built_in(), prefills=curve)))
    file = tmp_path / "recorded.json"
    engine = Recorder(await _simulator(tmp_path, "prefill", replayed), file)
    engine.start()

    async def user(users: int, name: int) -> None:
        for number in range(6):
            prompt = TokenPrompt(range(300, 350 + 20 * ((name + number) % users)))
            job = Job(request_id=f"{users}-{name}-{number}", prompt=prompt, sampling=Sampling(max_tokens=1))
            await engine.prefill(job)
            await engine.abort(job.request_id)

    for users in (2, 5):
        await asyncio.gather(*(user(users, name) for name in range(users)))
    await engine.stop()
    recorded, true = calibration.load(file), calibration.load(replayed)
    for tokens in (120, 450):
        assert recorded.prefill_seconds(tokens) == pytest.approx(true.prefill_seconds(tokens), rel=0.15)


class Stepping:
    """An engine of which one answer is followed: (seconds, requests that run afterwards) by step."""

    def __init__(self, steps: list[tuple[float, int]]) -> None:
        self._steps = steps
        self._running = 0

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(alive=True, running_requests=self._running, waiting_requests=1, depth=0)

    async def generate(self, job: Job, **_: object) -> AsyncIterator[Chunk]:
        for index, (seconds, running) in enumerate(self._steps):
            await asyncio.sleep(seconds)
            self._running = running
            yield Chunk(first_token_index=index, token_ids=(7,))


async def test_a_step_in_which_a_request_came_or_went_counts_as_one_of_the_bigger_batch(tmp_path: Path) -> None:
    """Twenty milliseconds alone, sixty when one comes, forty beside it, eighty when it goes."""
    once = [(0.06, 2), (0.04, 2), (0.08, 1), (0.02, 1)]
    engine: Any = Stepping([(0.001, 1), *once * 4])
    recorder = Recorder(engine, tmp_path / "recorded.json")
    job = Job(request_id="a", prompt=TokenPrompt(range(300, 310)), sampling=Sampling(max_tokens=40))
    async for _ in recorder.generate(job):
        pass
    assert recorder._steps.mean((1, 0)) == pytest.approx(0.02, abs=0.008)
    assert recorder._steps.mean((2, 0)) == pytest.approx(0.06, abs=0.008)
