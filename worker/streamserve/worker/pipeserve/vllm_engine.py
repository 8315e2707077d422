"""vLLM's AsyncLLM behind the Engine seam.

Three processes make one engine: this one (requests, tokenizing, streaming), the engine core (the scheduler, with
SpecuStream in it) and its worker (the model, NIXL). Figures come from the scheduler's record, a mapped file, without
IPC; bytes of transfers from vLLM's own connector counters. The children die with this process (`lifeline.py`); that
the engine core died shows in `snapshot().alive` and ends every request with WorkerLost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from streamserve.contract.errors import (
    Cancelled,
    InternalError,
    InvalidRequest,
    StreamServeError,
    TransferFailed,
    WorkerLost,
)
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.runtime.errors import SetupError
from streamserve.runtime.ports import hold_port
from streamserve.worker.pipeserve import compat, limits, vllm_args, vllm_config, vllm_requests
from streamserve.worker.pipeserve.engine import (
    Adopted,
    Chunk,
    EngineInfo,
    EngineSnapshot,
    Job,
    KvGeometry,
    Outcome,
    Prefilled,
    Prompt,
)
from streamserve.worker.pipeserve.vllm_config import EngineSettings
from streamserve.worker.pipeserve.vllm_meters import Meters
from streamserve.worker.specustream import hook
from streamserve.worker.specustream.policy import Adopted as SchedulerVersion
from streamserve.worker.specustream.policy import Configure
from streamserve.worker.specustream.record import Record, RequestRecord

# A text or chat of more is cut into tokens in a thread: meanwhile nobody else would be served.
_LONG_TEXT_CHARACTERS: Final = 20_000
_STOP_SECONDS: Final = 10.0
# How long the last chunk of an answer waits for the scheduler's record of it, which comes a step after a stop string.
_RECORD_SECONDS: Final = 0.5
_RECORD_POLL_SECONDS: Final = 0.003


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
) -> VllmEngine:
    """A running engine, loaded in a thread so that this loop can answer meanwhile. Raises SetupError."""
    _check_folders(model, draft)
    record = run_dir / f"{worker_id.replace('/', '-')}.record"
    settings = {
        "role": role,
        "record": str(record),
        "policy": vllm_args.depth_policy(initial.speculation).to_mapping(),
        "generation": initial.id.generation,
        "step": initial.id.step,
    }
    wanted = EngineSettings(
        role=role, model=model, draft=draft, method=method, max_depth=max_depth, engine_args=engine_args
    )
    meters = Meters()
    # vLLM would listen on any port for 0, and tell its peers 0. It listens only once all is loaded, by which time a
    # port that was only looked up may be another engine's: ours is held until the engine stops.
    port_holder = hold_port(Random(), nixl_address[0]) if nixl_address[1] == 0 else None
    if port_holder is not None:
        nixl_address = (nixl_address[0], port_holder.getsockname()[1])

    def load() -> tuple[Any, KvGeometry]:
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        vllm_args.set_environment(on_cpu=on_cpu, method=method, model=model, nixl_address=nixl_address)
        compat.check()
        args = vllm_config.arguments(wanted, on_cpu=on_cpu)
        args.additional_config = {"streamserve": settings}
        config = vllm_config.judged(args)
        engine = compat.start(
            config, compat.stat_logger(meters.observe_transfers), log_requests=args.enable_log_requests
        )
        return engine, compat.kv_geometry(engine)

    try:
        llm, geometry = await asyncio.to_thread(load)
    except SetupError:
        raise
    except compat.UnsupportedVllm as error:
        raise SetupError(str(error)) from None
    except Exception as error:
        raise SetupError(f"vLLM did not start: {error}") from error
    depth = max_depth if method != "None" else 0
    return VllmEngine(llm, geometry, Record.open(record), meters, role=role, max_depth=depth, port_holder=port_holder)


def _check_folders(*names: str | None) -> None:
    for name in names:
        if name and name.startswith(("/", ".")) and not Path(name).is_dir():
            raise SetupError(f"there is no model folder {name}; download the model or correct the path")


class VllmEngine:
    """The Engine seam over one AsyncLLM."""

    def __init__(
        self,
        llm: Any,
        geometry: KvGeometry,
        record: Record,
        meters: Meters,
        *,
        role: str,
        max_depth: int,
        port_holder: socket.socket | None = None,
    ) -> None:
        self._llm = llm
        self._record = record
        self._meters = meters
        self._role = role
        self._tokenizer = llm.get_tokenizer()
        self._characters_per_token = vllm_requests.characters_per_token(self._tokenizer)
        self._speculative = max_depth > 0
        self._stopped = False
        self._port_holder = port_holder
        vocabulary, longest, running = compat.limits(llm)
        self._info = EngineInfo(
            kind="Vllm",
            version=compat.version(),
            vocabulary_size=vocabulary,
            max_model_tokens=longest,
            max_running_requests=running,
            max_depth=max_depth if role == "decode" else 0,
            kv=geometry,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def snapshot(self) -> EngineSnapshot:
        death = "" if not self._dead() else "the engine was stopped" if self._stopped else "the engine core died"
        return self._meters.snapshot(
            self._record.snapshot(),
            now=time.monotonic(),
            death=death,
            bytes_per_block=self._info.kv.bytes_per_block,
            max_depth=self._info.max_depth,
        )

    async def prefill(self, job: Job) -> Prefilled:
        ids = await self._tokens(job.prompt)
        limits.max_new_tokens(job.sampling, prompt_tokens=len(ids), max_model_tokens=self._info.max_model_tokens)
        last: Any = None
        async for output in self._outputs(job, ids, vllm_requests.prefill_params):
            last = output
        parameters = last.kv_transfer_params if last is not None else None
        if not parameters:
            raise InternalError("vLLM computed the prompt but holds no KV of it for a pull; see the engine's log")
        return Prefilled(
            prompt_token_ids=ids,
            kv_handle=vllm_requests.pack(parameters),
            cached_prompt_tokens=int(last.num_cached_tokens or 0),
        )

    async def generate(
        self, job: Job, *, kv_handle: bytes = b"", cached_prompt_tokens: int = 0
    ) -> AsyncIterator[Chunk]:
        ids = await self._tokens(job.prompt)
        room = limits.max_new_tokens(job.sampling, prompt_tokens=len(ids), max_model_tokens=self._info.max_model_tokens)
        params = partial(
            vllm_requests.answer_params,
            job.sampling,
            max_tokens=room,
            speculative=self._speculative,
            handle=kv_handle,
        )
        index, began = 0, time.monotonic()
        async with contextlib.aclosing(self._outputs(job, ids, params)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                ended = completion.finish_reason
                if ended is not None and ended not in vllm_requests.FINISH_REASONS:
                    raise self._ended_badly(ended, pulled=bool(kv_handle))
                new = list(completion.token_ids)
                if not new and ended is None:
                    continue
                outcome = None
                if ended is not None:
                    # vLLM names the stop string that it found; of the end of sequence it says None or a token's id.
                    late = isinstance(completion.stop_reason, str)
                    cached = cached_prompt_tokens if kv_handle else int(output.num_cached_tokens or 0)
                    entry = await self._entry(job, began, late=late)
                    outcome = self._outcome(entry, ended, len(ids), index + len(new), cached)
                yield Chunk(
                    first_token_index=index,
                    token_ids=new,
                    text=completion.text,
                    logprobs=vllm_requests.logprobs_of(new, completion.logprobs, count=job.sampling.logprobs),
                    outcome=outcome,
                )
                index += len(new)

    async def abort(self, request_id: str) -> None:
        if self._dead():
            return
        await self._llm.abort(request_id)
        if self._role == "prefill":
            # vLLM aborts nothing that it has finished: a prompt that is held for a pull, whether or not we read so yet.
            with contextlib.suppress(Exception):
                await compat.call_engine_utility(self._llm, hook.RELEASE, request_id)

    async def configure(self, id: ConfigId, speculation: SpeculationConfig) -> Adopted:
        # Without a drafter there is nothing that a bound could bound: its lane waits to be replaced.
        if self._role == "decode" and 0 < self._info.max_depth < speculation.max_depth:
            raise InvalidRequest(
                f"depth {speculation.max_depth} is more than the {self._info.max_depth} that this engine was built "
                "for; lower depth.max, or raise maxDepth, which replaces the lanes",
                field="speculation.max_depth",
            )
        message = Configure(SchedulerVersion(*id.order), vllm_args.depth_policy(speculation))
        try:
            answer = json.loads(await compat.call_engine_utility(self._llm, hook.CONFIGURE, message.to_json()))
        except Exception as error:
            raise self._translated(error) from error
        adopted = ConfigId(uid=id.uid, generation=answer["generation"], step=answer["step"])
        return Adopted(id=adopted, step_count=self._record.snapshot().steps)

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._llm.shutdown), _STOP_SECONDS)
        if self._port_holder is not None:
            self._port_holder.close()

    # ---- requests ----

    async def _tokens(self, prompt: Prompt) -> list[int]:
        characters = vllm_requests.characters(prompt)
        limits.check_characters(
            characters,
            characters_per_token=self._characters_per_token,
            max_model_tokens=self._info.max_model_tokens,
        )
        if characters > _LONG_TEXT_CHARACTERS:
            ids = await asyncio.to_thread(vllm_requests.token_ids, prompt, self._tokenizer)
        else:
            ids = vllm_requests.token_ids(prompt, self._tokenizer)
        limits.check_prompt(
            ids, vocabulary_size=self._info.vocabulary_size, max_model_tokens=self._info.max_model_tokens
        )
        return ids

    async def _outputs(self, job: Job, ids: Sequence[int], params: Callable[[], Any]) -> AsyncGenerator[Any, None]:
        """vLLM's outputs of one request; closing this aborts it. Raises errors of the contract's tree only: `params`
        is built in here, because vLLM judges it there and then."""
        if self._dead():
            raise WorkerLost("the engine of this worker is not running; send the request again")
        try:
            priority = compat.priority(self._llm, job.priority)
            stream = self._llm.generate(compat.engine_input(ids), params(), job.request_id, priority=priority)
            async with contextlib.aclosing(stream) as outputs:
                async for output in outputs:
                    yield output
        except StreamServeError:
            raise
        except Exception as error:
            raise self._translated(error) from error

    async def _entry(self, job: Job, began: float, *, late: bool) -> RequestRecord | None:
        """The scheduler's record of this request, none of an earlier one with its id; waited for where it is `late`."""
        until = time.monotonic() + (_RECORD_SECONDS if late else 0.0)
        looked_at = -1
        while True:
            # To look through the ring takes longer than to see whether anything was added to it.
            finished = self._record.snapshot().finished_requests
            if finished != looked_at:
                entry = self._record.finished(job.request_id, since=began)
                if entry is not None:
                    return entry
                looked_at = finished
            if self._dead() or time.monotonic() >= until:
                return None
            await asyncio.sleep(_RECORD_POLL_SECONDS)

    def _outcome(self, entry: RequestRecord | None, ended: str, prompt: int, completion: int, cached: int) -> Outcome:
        return Outcome(
            reason=vllm_requests.FINISH_REASONS[ended],
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_prompt_tokens=cached,
            drafted_tokens=entry.drafted if entry else 0,
            accepted_tokens=entry.accepted if entry else 0,
            depths_seen_mask=entry.depth_mask if entry else 0,
            kv_transfer_bytes=entry.blocks_received * self._info.kv.bytes_per_block if entry else 0,
            recorded=entry is not None,
        )

    # ---- errors ----

    def _dead(self) -> bool:
        return self._stopped or bool(self._llm.errored)

    def _ended_badly(self, ended: str, *, pulled: bool) -> StreamServeError:
        if self._dead():
            return WorkerLost("the engine of this worker died under the request; send it again")
        if ended == "abort":
            return Cancelled("the request was aborted on this worker")
        if pulled:
            return TransferFailed("the prompt's KV did not arrive from the prefill worker; prefill it again")
        return InternalError(f"vLLM ended the request with {ended!r}; see the engine's log")

    def _translated(self, error: Exception) -> StreamServeError:
        if isinstance(error, StreamServeError):
            return error
        if self._dead() or compat.is_engine_death(error):
            return WorkerLost("the engine of this worker died under the request; send it again")
        if compat.is_bad_request(error):
            return InvalidRequest(f"vLLM refuses the request: {error}")
        return InternalError(f"vLLM failed on the request: {type(error).__name__}: {error}")
