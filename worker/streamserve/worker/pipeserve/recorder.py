"""Write down how fast an engine is, while it serves: a calibration that the simulator replays.

Wraps any Engine and measures at the seam, so whatever lies between the server and the GPU is in the numbers:

    prefill     time of a step that computes prompts, by their tokens, alone or beside others (`prompt_steps.py`)
    step        time between two chunks of a stream, by (running requests, depth). Steps in which a request came or went
                count as of the bigger batch: they are the slow ones, and an answer takes them too
    transfer    time to the first chunk of a pulled request, by bytes moved, less what the simulator adds by itself: the
                step that computes the first token, and among other requests one more, half of it on average until
                the pull is scheduled, and half until a step ends after which it is seen to have come
    acceptance  the engine's own counts by position: c_i = (accepted_i / drafted_i) / (accepted_(i-1) / drafted_(i-1))

A step's value is the mean of its last 4,096 samples, but for the outermost; 512 prompts and transfers are kept. Prompts
and transfers hardly ever have the same size twice, so of these at most eight points are kept: medians of neighbours.
More never takes less: where a bigger batch or prompt was faster by chance, the two become one. Beyond the outermost
points the curve goes on with the slope of these, which two noisy ones would set to anything. The file is replaced every
5 s and on stop, once there is a step or a prefill to tell of.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Final

from streamserve.contract.runtime_config import ConfigId, SpeculationConfig
from streamserve.runtime import logs, process
from streamserve.runtime.tasks import Tasks
from streamserve.worker.pipeserve import calibration
from streamserve.worker.pipeserve.calibration import Calibration, Point
from streamserve.worker.pipeserve.engine import (
    Adopted,
    Chunk,
    Engine,
    EngineInfo,
    EngineSnapshot,
    Job,
    Prefilled,
)
from streamserve.worker.pipeserve.prompt_steps import PromptSteps

_log = logs.get(__name__)
WRITE_SECONDS: Final = 5.0
_STEP_SAMPLES: Final = 4_096
_SAMPLES: Final = 512
_LEAST_SECONDS: Final = 1e-4
_LEAST_SAMPLES: Final = 3
_TRIMMED: Final = 50
_GROUPS: Final = 8
_GROUP_SAMPLES: Final = 5
_Load = tuple[int, int]


class Steps:
    """What the most recent steps of each (running requests, depth) took: means, for an answer takes them all."""

    def __init__(self) -> None:
        self._of: dict[_Load, deque[float]] = {}

    def add(self, load: _Load, seconds: float) -> None:
        self._of.setdefault(load, deque(maxlen=_STEP_SAMPLES)).append(seconds)

    def mean(self, load: _Load) -> float | None:
        """Of one load; None while little is known of it."""
        values = self._of.get(load, ())
        return trimmed_mean(values) if len(values) >= _LEAST_SAMPLES else None

    def means(self) -> Mapping[_Load, float]:
        """Loads with few samples count only where there is nothing better."""
        known = {load: trimmed_mean(values) for load, values in self._of.items() if len(values) >= _LEAST_SAMPLES}
        return known or {load: trimmed_mean(values) for load, values in self._of.items()}

    def table(self) -> list[tuple[int, int, float]]:
        """(batch, depth, seconds); batches that took about the same stand as one in their middle."""
        by_depth: dict[int, list[tuple[float, float, int]]] = {}
        for (batch, depth), seconds in sorted(self.means().items()):
            by_depth.setdefault(depth, []).append((batch, seconds, len(self._of[batch, depth])))
        return sorted(
            (round(batch), depth, seconds) for depth, points in by_depth.items() for batch, seconds in rising(points)
        )


def trimmed_mean(values: Iterable[float]) -> float:
    """Without the fastest and slowest fiftieth: a machine that stood still for a second says nothing of its engine."""
    ordered = sorted(values)
    cut = len(ordered) // _TRIMMED
    return fmean(ordered[cut : len(ordered) - cut])


def trend(samples: Sequence[Point]) -> list[Point]:
    """A few points that noisy (size, seconds) samples lie around; sizes and seconds rise from one to the next."""
    ordered = sorted(samples)
    groups = max(1, min(_GROUPS, len(ordered) // _GROUP_SAMPLES))
    edges = [len(ordered) * n // groups for n in range(groups + 1)]
    parts = [ordered[low:high] for low, high in pairwise(edges) if low < high]
    return rising([(median(size for size, _ in part), median(s for _, s in part), len(part)) for part in parts])


def rising(points: Sequence[tuple[float, float, int]]) -> list[Point]:
    """(size, seconds, samples) in order of size; neighbours that are out of order, or of one size, become one."""
    pooled: list[tuple[float, float, int]] = []
    for point in points:
        pooled.append(point)
        while len(pooled) > 1 and (pooled[-1][1] < pooled[-2][1] or pooled[-1][0] <= pooled[-2][0]):
            (x1, y1, n1), (x0, y0, n0) = pooled.pop(), pooled.pop()
            n = n0 + n1
            pooled.append(((x0 * n0 + x1 * n1) / n, (y0 * n0 + y1 * n1) / n, n))
    return [(size, seconds) for size, seconds, _ in pooled]


class Recorder:
    """An Engine that is another one, and a file."""

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine = engine
        self._file = file
        self._prefills: deque[Point] = deque(maxlen=_SAMPLES)
        self._steps = Steps()
        self._transfers: deque[Point] = deque(maxlen=_SAMPLES)
        self._prompt_steps = PromptSteps(lambda tokens, seconds: self._prefills.append((tokens, seconds)))
        self._tasks = Tasks("recorder")

    def start(self) -> None:
        self._tasks.spawn("write", self._write_often())

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def snapshot(self) -> EngineSnapshot:
        return self._engine.snapshot()

    async def prefill(self, job: Job) -> Prefilled:
        began = time.perf_counter()
        try:
            done = await self._engine.prefill(job)
        except BaseException:
            self._prompt_steps.unclear(time.perf_counter())
            raise
        now = time.perf_counter()
        self._prompt_steps.ended(len(done.prompt_token_ids), began, now)
        if done.cached_prompt_tokens:
            self._prompt_steps.unclear(now)
        return done

    async def generate(
        self, job: Job, *, kv_handle: bytes = b"", cached_prompt_tokens: int = 0
    ) -> AsyncIterator[Chunk]:
        chunks = self._engine.generate(job, kv_handle=kv_handle, cached_prompt_tokens=cached_prompt_tokens)
        began = last = time.perf_counter()
        before: _Load | None = None
        first_seconds, first_load = 0.0, (1, 0)
        try:
            async for chunk in chunks:
                now = time.perf_counter()
                snapshot = self._engine.snapshot()
                load = (max(snapshot.running_requests, 1), snapshot.depth)
                if chunk.first_token_index == 0:
                    first_seconds, first_load = now - began, load
                elif before is not None and load[1] == before[1]:
                    self._steps.add(max(load, before), now - last)
                if chunk.outcome is not None and kv_handle and chunk.outcome.kv_transfer_bytes:
                    self._transferred(chunk.outcome.kv_transfer_bytes, first_seconds, first_load)
                last, before = now, load
                yield chunk
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    def _transferred(self, size_bytes: int, first_seconds: float, load: _Load) -> None:
        step = self._steps.mean(load)
        if step is not None:
            running, _ = load
            beside = step if running == 1 else 2 * step
            self._transfers.append((size_bytes, max(first_seconds - beside, _LEAST_SECONDS)))

    async def abort(self, request_id: str) -> None:
        await self._engine.abort(request_id)

    async def configure(self, id: ConfigId, speculation: SpeculationConfig) -> Adopted:
        return await self._engine.configure(id, speculation)

    async def stop(self) -> None:
        self._write()
        await self._tasks.stop()
        await self._engine.stop()

    async def _write_often(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._write()

    def _write(self) -> None:
        recorded = self.calibration()
        if recorded is None:
            return
        try:
            process.write_atomic(self._file, calibration.dump(recorded), mode=0o644)
        except OSError as error:
            _log.warning("cannot write the calibration: %s", error)

    def calibration(self) -> Calibration | None:
        """What is known so far; what this engine's role never does is taken from the built-in calibration."""
        self._prompt_steps.close()
        prefills = trend(self._prefills)
        steps = self._steps.table()
        if not prefills and not steps:
            return None
        rest = calibration.built_in()
        transfers = trend(self._transfers)
        info = self._engine.info
        parts = [
            f"{name} recorded" if known else f"{name} built in"
            for name, known in (("steps", steps), ("prefill", prefills), ("transfer", transfers))
        ]
        return Calibration(
            source=f"{info.kind} {info.version}: {', '.join(parts)}",
            engine_version=info.version,
            vocabulary_size=info.vocabulary_size,
            max_model_tokens=info.max_model_tokens,
            max_running_requests=info.max_running_requests,
            kv=info.kv,
            steps=tuple(steps) or rest.steps,
            prefills=tuple(prefills) or rest.prefills,
            transfers=tuple(transfers) or rest.transfers,
            acceptance=conditional_acceptance(self._engine.snapshot().positions),
        )


def conditional_acceptance(positions: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Acceptance given that all before were accepted, from (drafted, accepted) by position. Ends where data ends."""
    rates: list[float] = []
    survival = 1.0
    for drafted, accepted in positions:
        if not drafted or survival <= 0.0:
            break
        survives = accepted / drafted
        rates.append(min(survives / survival, 1.0))
        survival = survives
    return tuple(rates)
