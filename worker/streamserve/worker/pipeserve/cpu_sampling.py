"""Makes sampled requests lossless under speculation on vLLM's CPU build.

vLLM spreads each request's temperature, top_k and top_p over its draft positions with `expand_batch_to_tokens`. The
CPU kernel behind it (vllm/utils/cpu_triton_utils.py, seen in 0.32.0) writes into a copy of the output whenever that
is not int64, which it never is here: the values used are whatever the memory held. Greedy requests do not come by.
Seen as a second token whose distribution is far from that of plain vLLM (tests/e2e/vllm/test_same_distribution.py).

The same in three lines of torch takes its place, on CPU only.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def repair() -> bool:
    """Replace the function in this process, where vLLM runs on the CPU; False on another platform."""
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return False
    sampler: Any = importlib.import_module("vllm.v1.sample.rejection_sampler")
    sampler.expand_batch_to_tokens = expand_batch_to_tokens
    return True


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: float = 0,
    replace_to: float = 0,
) -> torch.Tensor:
    """`x[i]` as often as request i has tokens, `replace_from` replaced. Shapes: [requests], [requests] → [tokens]."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)
