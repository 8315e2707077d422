"""The one place that names what vLLM keeps private, for the versions that were read and tried: 0.26.0 and 0.32.0.

Everything else of the worker goes through these functions, so a new vLLM version is one file to read. `check` runs at
start-up and names what is missing, instead of an AttributeError in the middle of a step.

What differs between the two, as far as we use it (`get_request_counts` hides the first line):

    name                                0.26.0                       0.32.0
    waiting requests                    waiting, skipped_waiting     waiting, kv_holding_waiting
    async scheduling with draft_model   off unless asked for         on by default (never on CPU)
    AsyncLLM.generate keywords          –                            session_id, kv_hints (unused)
    NIXL failure counters               no num_failed_handshakes     num_failed_handshakes
    KV of a draft shaped otherwise      the NIXL connector dies      handed over
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamserve.worker.pipeserve.engine import KvGeometry

SUPPORTED = ("0.26.0", "0.32.0")

_NAMES = (
    "vllm.v1.core.sched.scheduler:Scheduler.schedule",
    "vllm.v1.core.sched.scheduler:Scheduler._update_after_schedule",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
    "vllm.v1.core.sched.scheduler:Scheduler._free_request",
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request",
    "vllm.v1.core.sched.scheduler:Scheduler.add_request",
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests",
    "vllm.v1.core.sched.scheduler:Scheduler.get_request_counts",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks",
    "vllm.v1.engine.core:EngineCore.step",
    "vllm.v1.engine.core_client:AsyncMPClient.call_utility_async",
    "vllm.v1.engine.async_llm:AsyncLLM.from_vllm_config",
    "vllm.v1.engine.async_llm:AsyncLLM.errored",
    "vllm.v1.engine.exceptions:EngineDeadError",
    "vllm.v1.metrics.loggers:StatLoggerBase.record",
    "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
    "vllm.v1.metrics.stats:PrefillStats.__dataclass_fields__.num_external_cached_tokens",
    "vllm.v1.core.sched.output:SchedulerOutput.__dataclass_fields__.num_spec_tokens_to_schedule",
    "vllm.v1.core.sched.output:SchedulerOutput.__dataclass_fields__.scheduled_spec_decode_tokens",
    "vllm.v1.core.sched.output:SchedulerOutput.__dataclass_fields__.num_scheduled_tokens",
    "vllm.v1.metrics.stats:SchedulerStats.__dataclass_fields__.kv_connector_stats",
    "vllm.distributed.nixl_utils:nixl_agent_config",
    "vllm.distributed.kv_transfer.kv_connector.v1.nixl:NixlConnector",
    "vllm.inputs.engine:tokens_input",
    "vllm.v1.metrics.loggers:StatLoggerBase.log_engine_initialized",
    "vllm.config.scheduler:SchedulerConfig.get_scheduler_cls",
    "vllm.config.speculative:SpeculativeConfig.__dataclass_fields__.num_speculative_tokens_per_batch_size",
)
_PARAMETERS = {
    "vllm.v1.core.sched.scheduler:Scheduler._free_request": ("request", "delay_free_blocks"),
    "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats": (
        "spec_decoding_stats",
        "num_draft_tokens",
        "num_accepted_tokens",
        "num_invalid_spec_tokens",
        "request_id",
    ),
    "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.wait": ("timeout_ms",),
}
_ATTRIBUTES = {
    "vllm.v1.request:Request.__init__": (
        "num_computed_tokens",
        "num_output_placeholders",
        "num_prompt_tokens",
        "prefill_stats",
        "spec_token_ids",
        "kv_transfer_params",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": (
        "dynamic_sd_lookup",
        "num_spec_tokens",
        "running",
        "requests",
        "kv_cache_manager",
        "log_stats",
        "block_size",
        "max_model_len",
    ),
    "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.__init__": ("last_read", "busy_loop_s"),
}


class UnsupportedVllm(RuntimeError):
    """This vLLM is not one of SUPPORTED, or lacks a private name that the worker stands on."""


def version() -> str:
    """vLLM's version without its local part (`0.32.0+cpu` is `0.32.0`)."""
    import vllm

    return str(vllm.__version__).split("+")[0]


def check() -> None:
    """Raise UnsupportedVllm unless every private name is there, in a version that was tried."""
    found = version()
    if found not in SUPPORTED:
        raise UnsupportedVllm(f"vLLM {found} is not supported; install one of {', '.join(SUPPORTED)}")
    missing = [name for name in _NAMES if _resolve(name) is None]
    for name, parameters in _PARAMETERS.items():
        function = _resolve(name)
        given = inspect.signature(function).parameters if function else {}
        missing += [f"{name}({parameter})" for parameter in parameters if parameter not in given]
    for name, attributes in _ATTRIBUTES.items():
        function = _resolve(name)
        assigned = function.__code__.co_names if function else ()
        missing += [f"{name.removesuffix('.__init__')}.{item}" for item in attributes if item not in assigned]
    if missing:
        raise UnsupportedVllm(f"vLLM {found} lacks {', '.join(missing)}; reinstall it, or another of {SUPPORTED}")


def _resolve(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError:
        return None
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if value is None:
            # A pydantic field without a default is no class attribute.
            return None
    return value


def scheduler_base(vllm_config: Any) -> type[Any]:
    """The scheduler class that vLLM itself would take: a mixin over the other one would silently stop speculation."""
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def add_engine_utility(name: str, method: Callable[..., Any]) -> None:
    """Let `call_utility(name)` reach `method(engine_core, …)`; call it inside the engine's process."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, name, method)


async def call_engine_utility(engine: Any, name: str, *arguments: Any) -> Any:
    """Call a utility of AsyncLLM's engine core; it runs between two steps, on the engine's own thread."""
    return await engine.engine_core.call_utility_async(name, *arguments)


def settings_of(vllm_config: Any) -> dict[str, Any]:
    """What the worker put into vLLM's `additional_config` for its own code in the engine's processes."""
    additional = vllm_config.additional_config
    values = additional.get("streamserve", {}) if isinstance(additional, dict) else {}
    return dict(values)


def depth_is_variable(scheduler: Any) -> bool:
    """Whether the engine was built to draft a different depth at every step."""
    return scheduler.dynamic_sd_lookup is not None


def built_depth(scheduler: Any) -> int:
    """The deepest draft that the engine's buffers hold; 0 without speculation."""
    return int(scheduler.num_spec_tokens)


def planned_depth(scheduler_output: Any) -> int:
    return int(scheduler_output.num_spec_tokens_to_schedule)


def set_planned_depth(scheduler_output: Any, depth: int) -> None:
    """Only before vLLM's own `_update_after_schedule`, which makes placeholders of this width."""
    scheduler_output.num_spec_tokens_to_schedule = depth


def scheduled(scheduler: Any, scheduler_output: Any) -> Iterable[tuple[Any, int]]:
    """(request, tokens) of this step, before they count as computed."""
    requests = scheduler.requests
    return ((requests[name], tokens) for name, tokens in scheduler_output.num_scheduled_tokens.items())


def verified_depth(scheduler_output: Any) -> int:
    """Drafts verified by this step for the request that has most of them."""
    return max(map(len, scheduler_output.scheduled_spec_decode_tokens.values()), default=0)


def truncate_pending_drafts(scheduler: Any, depth: int) -> int:
    """Cut drafts that wait for verification to `depth`; returns how many requests were cut.

    Lossless: the cut depends on the configuration alone, and a draft's prefix is a draft. In async mode the pending
    drafts are placeholders, and the runner verifies as many of its drafts as there are placeholders.
    """
    cut = 0
    for request in scheduler.running:
        if len(request.spec_token_ids) > depth:
            request.spec_token_ids = request.spec_token_ids[:depth]
            cut += 1
    return cut


def request_counts(scheduler: Any) -> tuple[int, int]:
    """(running, waiting)."""
    running, waiting = scheduler.get_request_counts()
    return int(running), int(waiting)


def block_counts(scheduler: Any) -> tuple[int, int]:
    """(free, total) KV blocks; vLLM's null block is neither."""
    pool = scheduler.kv_cache_manager.block_pool
    return int(pool.get_num_free_blocks()), int(pool.num_gpu_blocks) - 1


def arrives_with_kv(request: Any) -> bool:
    """Whether the prompt's KV is to be pulled from another engine."""
    parameters = request.kv_transfer_params
    return bool(parameters and parameters.get("do_remote_prefill"))


def received(request: Any, block_size: int) -> tuple[int, int]:
    """(prompt tokens, KV blocks) that came from another engine; known once the request was scheduled first."""
    stats = request.prefill_stats
    if stats is None or not stats.num_external_cached_tokens:
        return 0, 0
    here, there = stats.num_local_cached_tokens, stats.num_external_cached_tokens
    return there, -(-(here + there) // block_size) - here // block_size


def external_id(request_id: str) -> str:
    """The id that the caller gave: vLLM appends eight random characters to it."""
    name, dash, suffix = request_id.rpartition("-")
    return name if dash and len(suffix) == 8 else request_id


def release_held(scheduler: Any, external: str) -> int:
    """Let the leases of computed prompts, held for a pull under the caller's id, run out now; returns how many."""
    if scheduler.connector is None:
        return 0
    requests = scheduler.requests.items()
    held = [name for name, request in requests if request.is_finished() and external_id(name) == external]
    for name in held:
        # The worker's side takes the deadline over at the next step and frees what has expired.
        scheduler.connector.connector_scheduler._reqs_need_send[name] = time.perf_counter()
    return len(held)


def engine_input(token_ids: Sequence[int]) -> Any:
    """A prompt that needs no more processing; a raw one would take a detour over a thread pool."""
    from vllm.inputs.engine import tokens_input

    return tokens_input(list(token_ids))


def stat_logger(observe: Callable[[Mapping[str, list[float]]], None]) -> Any:
    """A factory for AsyncLLM's `stat_loggers` that hands the KV connector's own counts of each step to `observe`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class TransferLogger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            super().__init__(vllm_config, engine_index)

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            if scheduler_stats is not None and scheduler_stats.kv_connector_stats:
                observe(scheduler_stats.kv_connector_stats)

        def log_engine_initialized(self) -> None:
            """Nothing to say; abstract in vLLM."""

    return TransferLogger


def transfer_config(values: Mapping[str, Any]) -> Any:
    from vllm.config import KVTransferConfig

    return KVTransferConfig(**values)


def configuration(args: Any) -> Any:
    """vLLM's own configuration of these engine arguments. Raises ValueError where vLLM does not take them."""
    from vllm.usage.usage_lib import UsageContext

    return args.create_engine_config(UsageContext.ENGINE_CONTEXT)


def start(config: Any, logger_factory: Any, *, log_requests: bool = False) -> Any:
    """A loaded AsyncLLM; blocks until the engine core and its workers are up."""
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_vllm_config(config, stat_loggers=[logger_factory], enable_log_requests=log_requests)


def limits(llm: Any) -> tuple[int, int, int]:
    """(vocabulary size, longest prompt and answer in tokens, requests that run at once)."""
    config = llm.vllm_config
    return (
        int(config.model_config.get_vocab_size()),
        int(config.model_config.max_model_len),
        int(config.scheduler_config.max_num_seqs),
    )


def priority(llm: Any, wanted: int) -> int:
    """vLLM refuses a priority unless its queue is ordered by it; in vLLM the lowest number goes first."""
    return -wanted if llm.vllm_config.scheduler_config.policy == "priority" else 0


def transfer_refusal(config: Any) -> str | None:
    """Why this vLLM cannot hand over the KV of this target and draft; None where it can.

    0.26.0's NIXL connector asserts that the KV tensors of all layers have one size, and kills the engine otherwise.
    """
    shapes = [
        f"{model.get_total_num_kv_heads()} KV heads x {model.get_head_size()} ({cache_dtype(config, model)})"
        for model in _models_with_kv(config)
    ]
    if version() != "0.26.0" or len(set(shapes)) == 1:
        return None
    return (
        f"vLLM 0.26.0 hands KV over only where target and draft keep it in one shape; the target has {shapes[0]}, "
        f"the draft {shapes[1]}: take a draft of the target's shape, no draft model, or vLLM 0.32.0"
    )


def kv_geometry(llm: Any) -> KvGeometry:
    """Size of a KV block from the models' shapes: 2 · layers · heads · head size · bytes of the dtype · tokens."""
    config = llm.vllm_config
    models = _models_with_kv(config)
    block_tokens = int(config.cache_config.block_size)
    per_token = 0
    layers = []
    for model in models:
        dtype = cache_dtype(config, model)
        count = int(model.get_num_layers(config.parallel_config))
        heads = int(model.get_total_num_kv_heads())
        layers.append(count)
        per_token += 2 * count * heads * int(model.get_head_size()) * int(dtype.itemsize)
    return KvGeometry(
        block_tokens=block_tokens,
        bytes_per_block=block_tokens * per_token,
        total_blocks=int(config.cache_config.num_gpu_blocks or 1) - 1,
        target_layers=layers[0],
        draft_layers=sum(layers[1:]),
        dtype=str(cache_dtype(config, config.model_config)).removeprefix("torch."),
    )


def _models_with_kv(config: Any) -> list[Any]:
    """The target, and the draft where that is a model."""
    speculative = config.speculative_config
    if speculative is None or speculative.draft_model_config is None or speculative.method == "ngram":
        return [config.model_config]
    return [config.model_config, speculative.draft_model_config]


def cache_dtype(config: Any, model: Any) -> Any:
    """torch dtype of the KV cache: the model's own unless the cache is told another."""
    name = config.cache_config.cache_dtype
    if name == "auto":
        return model.dtype
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    return STR_DTYPE_TO_TORCH_DTYPE[name]


def is_engine_death(error: BaseException) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def is_bad_request(error: BaseException) -> bool:
    """Whether vLLM means that the request is wrong: ValueError in 0.26.0, an error class of its own in 0.32.0."""
    from vllm.exceptions import VLLMValidationError

    return isinstance(error, (VLLMValidationError, ValueError, TypeError))
