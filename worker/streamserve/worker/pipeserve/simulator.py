"""An engine that computes nothing: tokens by formula, times from a calibration, everything around them real.

One task steps as vLLM's does: plan a batch (`simulated_scheduler.py`), let the time of the step pass, hand out what it
brought. SpecuStream's own laws choose the depth, KV blocks are counted in a bounded pool, and a prompt's KV is handed
from process to process with an acknowledgement (`simulated_kv.py`). Sleeping is corrected for drift: a step is due
when the step before was due plus its own time, unless the loop fell behind.

Which token stands at a position is `expected_token(prompt, position)`: see `simulated_tokens.py`. Faults for tests are
in `simulated_faults.py`, arguments in `simulator_options.py`. It never ends by itself: a request ends at max_tokens or
at a stop string.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Final

from streamserve.contract.errors import InvalidRequest, StreamServeError, TransferFailed, WorkerLost
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.runtime import logs
from streamserve.runtime.errors import SetupError
from streamserve.runtime.tasks import Tasks
from streamserve.worker.pipeserve import calibration as calibrations
from streamserve.worker.pipeserve import limits, simulated_kv, simulated_tokens, simulator_options
from streamserve.worker.pipeserve.engine import (
    Adopted,
    ChatPrompt,
    Chunk,
    EngineInfo,
    EngineSnapshot,
    FinishReason,
    Job,
    Logprob,
    Logprobs,
    Outcome,
    Prefilled,
    Prompt,
    TextPrompt,
)
from streamserve.worker.pipeserve.simulated_faults import ControlFile
from streamserve.worker.pipeserve.simulated_kv import Handle, HandOff
from streamserve.worker.pipeserve.simulated_scheduler import Emission, Scheduler, SimulatedSequence, Step
from streamserve.worker.pipeserve.simulated_tokens import expected_token
from streamserve.worker.pipeserve.simulator_meters import Meters
from streamserve.worker.pipeserve.simulator_options import SimulatorOptions
from streamserve.worker.specustream.laws import Knowledge, Load
from streamserve.worker.specustream.laws.make import make_law
from streamserve.worker.specustream.policy import DepthPolicy
from streamserve.worker.specustream.steptimes import bucket_of

__all__ = ["Simulator", "create", "expected_token"]

_log = logs.get(__name__)
_POLL_SECONDS: Final = 0.1
_LOGPROB: Final = -0.105


async def create(
    *,
    role: str,
    model: str,
    draft: str | None,
    method: str,
    max_depth: int,
    engine_args: Mapping[str, str],
    initial: RuntimeConfig,
    worker_id: str,
    nixl_address: tuple[str, int],
    run_dir: Path,
    calibration: Path | None = None,
) -> Simulator:
    """A running simulator. Model and draft are names only. Raises SetupError for arguments that it cannot use."""
    replayed = calibrations.load(calibration) if calibration else calibrations.built_in()
    options = simulator_options.parse(engine_args, replayed)
    depth = max_depth if role == "decode" and method != "None" else 0
    engine = Simulator(role=role, worker_id=worker_id, max_depth=depth, options=options)
    await engine.start(nixl_address)
    try:
        await engine.configure(initial.id, initial.speculation)
    except InvalidRequest as error:
        await engine.stop()
        raise SetupError(f"the configuration does not fit this engine: {error.message}") from None
    _log.info("simulator is up", extra={"calibration": replayed.source, "model": model, "role": role})
    return engine


@dataclass(slots=True, eq=False)
class _Stream:
    """What a request's reader has not taken yet; it grows until the request's end at most."""

    sequence: SimulatedSequence
    job: Job
    seed: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    blocks_taken: asyncio.Event = field(default_factory=asyncio.Event)
    first_index: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    given_text: int = 0
    kv_bytes: int = 0
    stopped: bool = False
    error: StreamServeError | None = None


class Simulator:
    """The Engine seam over `Scheduler`."""

    def __init__(self, *, role: str, worker_id: str, max_depth: int, options: SimulatorOptions) -> None:
        self._role = role
        self._worker_id = worker_id
        self._options = options
        self._calibration = options.calibration
        self._lease_seconds = options.lease_seconds
        kv = self._calibration.kv
        self.scheduler = Scheduler(
            max_running=self._calibration.max_running_requests,
            max_step_tokens=options.max_step_tokens,
            block_tokens=kv.block_tokens,
            total_blocks=kv.total_blocks,
        )
        self._info = EngineInfo(
            kind="Simulator",
            version=f"{self._calibration.engine_version}; calibration: {self._calibration.source}",
            vocabulary_size=self._calibration.vocabulary_size,
            max_model_tokens=self._calibration.max_model_tokens,
            max_running_requests=self._calibration.max_running_requests,
            max_depth=max_depth,
            kv=kv,
        )
        self._rng = Random(f"{options.seed}/{worker_id}")
        self._knowledge = Knowledge.empty()
        self._policy = DepthPolicy(policy="Off")
        self._law = make_law(self._policy, self._knowledge, self._rng)
        self._control = ControlFile(options.faults, options.control)
        self._meters = Meters(self._calibration, max_depth)
        self._hand_off = HandOff(self._freed)
        self._streams: dict[str, _Stream] = {}
        self._arrivals = 0
        self._wake = asyncio.Event()
        self._adopting: list[tuple[ConfigId, DepthPolicy, asyncio.Future[Adopted]]] = []
        self._stepping = False
        self._death = ""
        self._tasks = Tasks(f"simulator {worker_id}")

    async def start(self, address: tuple[str, int]) -> None:
        if self._role == "prefill":
            await self._hand_off.start(*address)
        self._tasks.spawn("steps", self._run())
        if self._control.watched:
            self._tasks.spawn("control", self._poll_control())

    @property
    def info(self) -> EngineInfo:
        return self._info

    def snapshot(self) -> EngineSnapshot:
        scheduler = self.scheduler
        return self._meters.snapshot(
            alive=not self._death,
            death=self._death,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(scheduler.pulling),
            waiting_tokens=scheduler.waiting_prompt_tokens,
            blocks_used=scheduler.pool.used,
        )

    async def prefill(self, job: Job) -> Prefilled:
        ids = self._tokenize(job.prompt)
        # Refused here rather than by the decode worker, after the work was done.
        limits.max_new_tokens(job.sampling, prompt_tokens=len(ids), max_model_tokens=self._info.max_model_tokens)
        stream = self._submit(job, ids, max_tokens=1, hold=True, remote=False)
        try:
            while not (stream.error or stream.sequence.request_id in self.scheduler.held):
                await stream.ready.wait()
                stream.ready.clear()
            if stream.error:
                raise stream.error
        except BaseException:
            self._end(stream)
            raise
        self._streams.pop(job.request_id, None)
        blocks = stream.sequence.blocks
        self._hand_off.hold(job.request_id, blocks, self._lease_seconds)
        host, port = self._hand_off.address
        size = self._info.kv.bytes_per_block
        handle = Handle(self._worker_id, job.request_id, host, port, len(ids), blocks, size)
        return Prefilled(prompt_token_ids=ids, kv_handle=handle.to_bytes())

    async def generate(
        self, job: Job, *, kv_handle: bytes = b"", cached_prompt_tokens: int = 0
    ) -> AsyncIterator[Chunk]:
        ids = self._tokenize(job.prompt)
        handle = Handle.from_bytes(kv_handle) if kv_handle else None
        if handle is not None and handle.tokens != len(ids):
            raise TransferFailed(f"the KV handle is of a prompt of {handle.tokens} tokens, this one has {len(ids)}")
        room = limits.max_new_tokens(job.sampling, prompt_tokens=len(ids), max_model_tokens=self._info.max_model_tokens)
        stream = self._submit(job, ids, max_tokens=room, hold=False, remote=handle is not None)
        pull = self._tasks.spawn(f"pull {job.request_id}", self._pull(stream, handle)) if handle else None
        try:
            while True:
                await stream.ready.wait()
                stream.ready.clear()
                if stream.error:
                    raise stream.error
                chunk = self._take(stream, cached_prompt_tokens)
                if chunk is not None:
                    yield chunk
                    if chunk.outcome is not None:
                        return
        finally:
            if pull is not None and not pull.done():
                pull.cancel()
            self._end(stream)

    async def abort(self, request_id: str) -> None:
        self._hand_off.free(request_id)
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.error = WorkerLost("the request was aborted on this worker", reason="ABORTED")
            self._end(stream)
            stream.ready.set()

    async def configure(self, id: ConfigId, speculation: SpeculationConfig) -> Adopted:
        # Without a drafter there is nothing that a bound could bound.
        if 0 < self._info.max_depth < speculation.max_depth:
            raise InvalidRequest(
                f"depth {speculation.max_depth} is more than the {self._info.max_depth} that this engine was built "
                "for; lower depth.max, or raise maxDepth, which replaces the lanes",
                field="speculation.max_depth",
            )
        policy = DepthPolicy(
            policy=speculation.policy.value if self._role == "decode" else "Off",
            min_depth=speculation.min_depth,
            max_depth=speculation.max_depth,
            fixed_depth=speculation.fixed_depth,
            itl_seconds=speculation.inter_token_latency_ms / 1000,
            probe_fraction=speculation.probe_percent / 100,
        )
        self._raise_if_dead()
        future: asyncio.Future[Adopted] = asyncio.get_running_loop().create_future()
        self._adopting.append((id, policy, future))
        if not self._stepping and not self._control.faults.stall:
            self._adopt()
        return await future

    async def stop(self) -> None:
        self._die("the engine was stopped")
        await self._hand_off.stop()
        await self._tasks.stop()

    # ---- requests ----

    def _tokenize(self, prompt: Prompt) -> Sequence[int]:
        ids: Sequence[int]
        if isinstance(prompt, TextPrompt):
            ids = simulated_tokens.encode(prompt.text, self._info.vocabulary_size)
        elif isinstance(prompt, ChatPrompt):
            text = simulated_tokens.render_chat(prompt.messages)
            ids = simulated_tokens.encode(text, self._info.vocabulary_size)
        else:
            ids = prompt.token_ids
        limits.check_prompt(
            ids, vocabulary_size=self._info.vocabulary_size, max_model_tokens=self._info.max_model_tokens
        )
        return ids

    def _submit(self, job: Job, ids: Sequence[int], *, max_tokens: int, hold: bool, remote: bool) -> _Stream:
        self._raise_if_dead()
        self._arrivals += 1
        sequence = SimulatedSequence(
            job.request_id, (-job.priority, self._arrivals), ids, max_tokens, hold=hold, remote=remote
        )
        stream = _Stream(sequence, job, simulated_tokens.prompt_seed(ids))
        self._streams[job.request_id] = stream
        self.scheduler.add(sequence)
        self._wake.set()
        return stream

    def _raise_if_dead(self) -> None:
        if self._death:
            raise WorkerLost(f"the engine is dead: {self._death}")

    def _end(self, stream: _Stream) -> None:
        self._streams.pop(stream.job.request_id, None)
        if not self._death:
            # The batch of a dead engine is nobody's any more, and may be what it died of.
            self.scheduler.end(stream.sequence)
        self._wake.set()

    def _freed(self, request_id: str) -> None:
        held = self.scheduler.held.get(request_id)
        if held is not None:
            self.scheduler.end(held)
            self._wake.set()

    async def _pull(self, stream: _Stream, handle: Handle) -> None:
        """Wait for blocks here, then for the transfer. A failure is the request's own."""
        try:
            await stream.blocks_taken.wait()
            faults = self._control.faults
            if faults.fail_transfers:
                raise TransferFailed("the transfer failed (simulated fault)")
            size = handle.blocks * handle.bytes_per_block
            seconds = self._calibration.transfer_seconds(size) * faults.slowdown
            began = time.perf_counter()
            await simulated_kv.pull(handle, seconds)
            self._meters.transferred(size, time.perf_counter() - began)
            stream.kv_bytes = size
            self.scheduler.pulled(stream.sequence)
            self._wake.set()
        except Exception as error:
            self._meters.transfers_failed += 1
            if not isinstance(error, TransferFailed):
                # A handle or a peer that is not as it should be: nobody but the request waits for this task.
                _log.warning("a pull failed unexpectedly: %r", error)
                error = TransferFailed(f"the transfer failed: {type(error).__name__}: {error}")
            stream.error = error
            stream.ready.set()

    def _take(self, stream: _Stream, cached_prompt_tokens: int) -> Chunk | None:
        """Everything the reader has not had, as one chunk."""
        sequence, sampling = stream.sequence, stream.job.sampling
        ended = stream.stopped or stream.first_index + len(stream.tokens) >= sequence.max_tokens
        if not stream.tokens and not ended:
            return None
        tokens, first = stream.tokens, stream.first_index
        stream.tokens = []
        stream.first_index = first + len(tokens)
        # A stop string must not be seen in part: what could be its beginning is kept back until it is decided.
        keep = 0 if ended or not sampling.stop else max(len(s) for s in sampling.stop) - 1
        upto = max(len(stream.text) - keep, stream.given_text)
        text, stream.given_text = stream.text[stream.given_text : upto], upto
        outcome = None
        if ended:
            outcome = Outcome(
                reason=FinishReason.STOP if stream.stopped else FinishReason.LENGTH,
                prompt_tokens=len(sequence.prompt_ids),
                completion_tokens=stream.first_index,
                cached_prompt_tokens=cached_prompt_tokens,
                drafted_tokens=sequence.drafted,
                accepted_tokens=sequence.accepted,
                depths_seen_mask=sequence.depths_mask,
                kv_transfer_bytes=stream.kv_bytes,
            )
        logprobs = () if sampling.logprobs is None else tuple(_logprobs(t, sampling.logprobs) for t in tokens)
        return Chunk(first_token_index=first, token_ids=tokens, text=text, logprobs=logprobs, outcome=outcome)

    # ---- the step loop ----

    async def _run(self) -> None:
        """Step until the engine is dead, which it is when this fails."""
        try:
            await self._step_on()
        except Exception as error:
            self._die(f"its step loop failed: {type(error).__name__}: {error}")
            raise

    async def _step_on(self) -> None:
        due = time.perf_counter()
        idle = True
        while not self._death:
            self._wake.clear()
            step = self._plan()
            if not step.work:
                # New requests, transfers, freed blocks and changed faults all set the event.
                idle = True
                await self._wake.wait()
                continue
            now = time.perf_counter()
            seconds = self._step_seconds(step)
            due = max(due, now) if idle else max(due, now - seconds)
            due += seconds
            self._stepping = True
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._stepping = False
            if self._death:
                return
            self._finish(step, seconds, clean=not idle)
            idle = False

    def _plan(self) -> Step:
        if self._control.faults.stall:
            return Step()
        self._adopt()
        for sequence in self.scheduler.start_pulls():
            self._streams[sequence.request_id].blocks_taken.set()
        return self.scheduler.plan(self._choose, self._policy.ceiling)

    def _choose(self, decoding: int) -> int:
        return self._policy.clamp(self._law.choose(Load(decoding=decoding)).depth)

    def _step_seconds(self, step: Step) -> float:
        faults = self._control.faults
        if faults.step_seconds is not None:
            return faults.step_seconds * faults.slowdown
        seconds = self._calibration.prefill_seconds(step.prefill_tokens)
        if step.decoding:
            verify = self._calibration.step_seconds(step.decoding, step.verified_depth)
            draft = self._calibration.step_seconds(step.decoding, step.depth)
            seconds += (verify + draft) / 2
        return seconds * faults.slowdown

    def _finish(self, step: Step, seconds: float, *, clean: bool) -> None:
        faults = self._control.faults
        rates = faults.acceptance
        accepts = self._calibration.accepts if rates is None else _rates(rates)
        emissions = self.scheduler.finish(step, accepts, self._rng)
        for emission in emissions:
            self._hand_out(emission)
        if judged := Counter((emission.drafted, emission.accepted) for emission in emissions if emission.drafted):
            self._law.observe_acceptance(judged)
        if step.decoding and clean and not step.prefill_tokens and step.verified_depth == step.depth:
            self._law.observe_step(bucket_of(step.decoding), step.depth, seconds)
        self._meters.stepped(step, seconds, emissions)

    def _hand_out(self, emission: Emission) -> None:
        stream = self._streams.get(emission.sequence.request_id)
        if stream is None or stream.stopped:
            return
        sampling = stream.job.sampling
        vocabulary = self._info.vocabulary_size
        for position in range(emission.first_index, emission.first_index + emission.tokens):
            token = simulated_tokens.token_at(stream.seed, position, vocabulary)
            stream.tokens.append(token)
            piece = _text(token)
            stream.text += piece
            if sampling.stop and position + 1 >= sampling.min_tokens:
                searched = max(len(s) for s in sampling.stop) + len(piece)
                found = [
                    at for s in sampling.stop if (at := stream.text.find(s, max(0, len(stream.text) - searched))) >= 0
                ]
                if found:
                    stream.text = stream.text[: min(found)]
                    stream.given_text = min(stream.given_text, len(stream.text))
                    stream.stopped = True
                    self.scheduler.end(emission.sequence)
                    break
        stream.ready.set()

    def _adopt(self) -> None:
        """Between two steps: the newest configuration offered becomes the law of every later one."""
        if not self._adopting:
            return
        offered, self._adopting = self._adopting, []
        policy = offered[-1][1].within(self._info.max_depth)
        if policy != self._policy:
            self._policy = policy
            self._law = make_law(policy, self._knowledge, self._rng)
            # What is shown is never outside the bounds in force, even before an idle engine's next step.
            self._meters.depth = min(policy.clamp(self._meters.depth), policy.ceiling)
        for id, _, future in offered:
            if not future.done():
                future.set_result(Adopted(id, self._meters.steps))

    async def _poll_control(self) -> None:
        while not self._death:
            faults = self._control.poll()
            if faults.die:
                self._die(faults.die)
            self._wake.set()
            await asyncio.sleep(_POLL_SECONDS)

    def _die(self, reason: str) -> None:
        """Every request ends with WorkerLost; nothing is taken any more."""
        if self._death:
            return
        self._death = reason
        for stream in list(self._streams.values()):
            stream.error = WorkerLost(f"the engine died: {reason}")
            self._end(stream)
            stream.ready.set()
        for _, _, future in self._adopting:
            if not future.done():
                future.set_exception(WorkerLost(f"the engine died: {reason}"))
        self._wake.set()


class _rates:
    __slots__ = ("_values",)

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __call__(self, position: int) -> float:
        return self._values[min(position, len(self._values) - 1)] if self._values else 0.0


@lru_cache(maxsize=65_536)
def _text(token: int) -> str:
    return simulated_tokens.decode((token,))


def _logprobs(token: int, top: int) -> Logprobs:
    """Invented, but well-formed: the sampled token is the most likely, the others follow in order."""
    others = range(max(top - 1, 0))
    rows = [(token, _LOGPROB), *((simulated_tokens.BYTES - 1 - i, _LOGPROB - 2.0 - i) for i in others)]
    sampled, *rest = (Logprob(token_id=each, logprob=value, text=_text(each)) for each, value in rows)
    return Logprobs(sampled=sampled, top=(sampled, *rest) if top else ())
