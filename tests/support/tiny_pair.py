"""The tiny pair of the repository, its prompts, and the size of its KV cache by the model files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MODELS: Final = REPOSITORY / "examples" / "models"
TARGET: Final = MODELS / "tiny-target"
DRAFT: Final = MODELS / "tiny-draft"
WORKLOADS: Final = ("gsm8k", "humaneval", "alpaca", "sum")
FLOAT32_BYTES: Final = 4


def prompts(per_workload: int) -> list[tuple[str, str]]:
    """(workload, prompt), the workloads taking turns."""
    lists = []
    for workload in WORKLOADS:
        lines = (REPOSITORY / "examples" / "prompts" / f"{workload}.jsonl").read_text().splitlines()
        lists.append([(workload, str(json.loads(line)["prompt"])) for line in lines[:per_workload]])
    return [row for rows in zip(*lists, strict=True) for row in rows]


def layer_bytes_per_token(model: Path) -> int:
    """Keys and values of all layers of one model, one token, in float32."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * FLOAT32_BYTES)


def kv_bytes(prompt_tokens: int, block_tokens: int, models: tuple[Path, ...] = (TARGET, DRAFT)) -> int:
    """What a transfer of a whole prompt moves: whole blocks, of every layer of target and draft."""
    blocks = -(-prompt_tokens // block_tokens)
    return blocks * block_tokens * sum(map(layer_bytes_per_token, models))
