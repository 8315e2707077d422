"""The simulator's engine arguments: vLLM's names where vLLM has the thing, refused by name where it does not."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from streamserve.runtime.errors import EngineRefused
from streamserve.worker.pipeserve.calibration import Calibration, with_kv
from streamserve.worker.pipeserve.simulated_faults import Faults

KNOWN: Final = {
    "max-model-len": "longest prompt and answer together, in tokens",
    "max-num-seqs": "requests that run at once",
    "max-num-batched-tokens": "tokens computed in one step",
    "block-size": "tokens in a KV block",
    "num-gpu-blocks-override": "KV blocks of the pool",
    "seed": "seed of the acceptance draws",
    "simulator-step-seconds": "test hook: seconds of every step",
    "simulator-acceptance": "test hook: JSON list of acceptance rates by draft position",
    "simulator-slowdown": "test hook: factor on every step and transfer",
    "simulator-control": "test hook: JSON file that changes faults while the engine runs",
    "simulator-lease-seconds": "how long a prompt's KV is held for its pull",
}
# Real engines need these; a simulator has nothing that they could change.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "dtype",
        "enforce-eager",
        "gpu-memory-utilization",
        "tensor-parallel-size",
        "trust-remote-code",
        "enable-prefix-caching",
        "no-enable-prefix-caching",
        "load-format",
        "generation-config",
        "kv-cache-memory-bytes",
    }
)
DEFAULT_LEASE_SECONDS: Final = 30.0
DEFAULT_STEP_TOKENS: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    calibration: Calibration
    max_step_tokens: int
    seed: int
    faults: Faults
    control: Path | None
    lease_seconds: float


def parse(arguments: Mapping[str, str], calibration: Calibration) -> SimulatorOptions:
    """Options and the calibration with its limits changed. Raises EngineRefused naming the argument."""
    given = {name.lstrip("-").replace("_", "-"): value for name, value in arguments.items()}
    for name in given:
        if name not in KNOWN and name not in _WITHOUT_EFFECT:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(KNOWN)}"
            raise EngineRefused(f"the simulator has no engine argument {name}{hint}")
    kv = calibration.kv
    max_model = _count(given, "max-model-len", calibration.max_model_tokens)
    block_tokens = _count(given, "block-size", kv.block_tokens)
    # The same bytes of memory hold the same tokens, whatever the size of a block.
    blocks = _count(given, "num-gpu-blocks-override", max(1, kv.total_blocks * kv.block_tokens // block_tokens))
    if blocks * block_tokens < max_model:
        raise EngineRefused(
            f"{blocks} KV blocks of {block_tokens} tokens hold {blocks * block_tokens} tokens, less than max-model-len "
            f"{max_model}: lower max-model-len or raise num-gpu-blocks-override"
        )
    try:
        faults = Faults(
            acceptance=json.loads(given["simulator-acceptance"]) if "simulator-acceptance" in given else None,
            step_seconds=float(given["simulator-step-seconds"]) if "simulator-step-seconds" in given else None,
            slowdown=float(given.get("simulator-slowdown", 1.0)),
        )
    except (ValidationError, ValueError) as error:
        raise EngineRefused(f"a simulator test hook is not usable: {error}") from None
    return SimulatorOptions(
        calibration=with_kv(
            calibration,
            block_tokens=block_tokens,
            total_blocks=blocks,
            max_model_tokens=max_model,
            max_running=_count(given, "max-num-seqs", calibration.max_running_requests),
        ),
        max_step_tokens=_count(given, "max-num-batched-tokens", DEFAULT_STEP_TOKENS),
        seed=_count(given, "seed", 0, least=0),
        faults=faults,
        control=Path(given["simulator-control"]) if "simulator-control" in given else None,
        lease_seconds=float(_count(given, "simulator-lease-seconds", int(DEFAULT_LEASE_SECONDS))),
    )


def _count(given: Mapping[str, str], name: str, default: int, *, least: int = 1) -> int:
    text = given.get(name, str(default))
    try:
        value = int(text)
    except ValueError:
        raise EngineRefused(f"engine argument {name} is {text!r}; write a whole number") from None
    if value < least:
        raise EngineRefused(f"engine argument {name} is {value}; use at least {least}")
    return value
