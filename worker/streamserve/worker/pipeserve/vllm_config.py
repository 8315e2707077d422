"""The configuration of one vLLM engine, whole, built and judged by vLLM itself before anything is loaded.

    settings → flags (vllm_args) → what is ours (speculation, transfer, scheduler) → vLLM's own configuration

vLLM checks values when it builds its configuration: bounds, the model's limits, what goes together. That takes
milliseconds once vLLM is imported, so a wrong flag is refused here, with its name, and not by a dying engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from streamserve.runtime.errors import EngineRefused, SetupError
from streamserve.worker.pipeserve import compat, vllm_args

_LONGEST_MESSAGE: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What a worker's command line says about its engine."""

    role: str
    model: str
    draft: str | None = None
    method: str = "None"
    max_depth: int = 0
    engine_args: Mapping[str, str] = field(default_factory=dict)


def arguments(settings: EngineSettings, *, on_cpu: bool) -> Any:
    """vLLM's AsyncEngineArgs with ours set. Raises EngineRefused naming the flag."""
    try:
        args = vllm_args.parse(settings.engine_args, model=settings.model, on_cpu=on_cpu)
        args.speculative_config = vllm_args.speculative_config(
            method=settings.method,
            draft=settings.draft,
            max_depth=settings.max_depth,
            role=settings.role,
            max_running=args.max_num_seqs,
        )
    except SetupError as error:
        raise EngineRefused(str(error)) from None
    args.kv_transfer_config = compat.transfer_config(vllm_args.transfer_config(on_cpu=on_cpu))
    args.scheduler_cls = "streamserve.worker.specustream.hook.scheduler"
    args.worker_extension_cls = "streamserve.worker.pipeserve.nixl.Worker"
    return args


def judged(args: Any) -> Any:
    """vLLM's configuration of these arguments. Raises EngineRefused with the reason on one line."""
    try:
        config = compat.configuration(args)
    except (ValueError, TypeError, RuntimeError) as error:
        raise EngineRefused(f"vLLM does not take these engine arguments: {one_line(error)}") from None
    if refusal := compat.transfer_refusal(config):
        raise EngineRefused(refusal)
    return config


def one_line(error: Exception) -> str:
    """`max-num-seqs is 0: input should be greater than or equal to 1`; other messages by their first sentences."""
    if isinstance(error, ValidationError):
        said = [_problem(item) for item in error.errors(include_url=False, include_context=False)]
    else:
        said = [str(error) or type(error).__name__]
    text = "; ".join(dict.fromkeys(" ".join(part.split()) for part in said))
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 1]}…"


def _problem(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not item["loc"]:
        return message
    flag = ".".join(str(part) for part in item["loc"]).replace("_", "-")
    return f"{flag} is {item['input']!r}: {message[:1].lower()}{message[1:]}"
