"""Plain vLLM, without speculation, disaggregation or us: `python plain_vllm.py ORDER.json ANSWER.json`.

The order: {"greedy": [prompt text, …], "max_tokens": n, "sampled": {"prompt": text, "temperature": t, "count": n}}.
The answer: {"greedy": [{"prompt_tokens": n, "token_ids": […], "margins": […]}, …], "sampled": [[first, second], …]},
a margin being the distance of the two best logits at that position. Everything in float32.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tiny_pair import TARGET

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
PER_REQUEST = 500


def main(order_file: str, answer_file: str) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    order = json.loads(Path(order_file).read_text())
    llm = LLM(
        model=str(TARGET),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=256,
        # Small blocks, so that the samples of one prompt share nearly all of it.
        block_size=32,
        disable_log_stats=True,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=order["max_tokens"], ignore_eos=True, logprobs=2)
    answer: dict[str, Any] = {
        "greedy": [
            {
                "prompt_tokens": len(output.prompt_token_ids or ()),
                "token_ids": list(output.outputs[0].token_ids),
                "margins": [_margin(entry) for entry in output.outputs[0].logprobs or ()],
            }
            for output in llm.generate(order["greedy"], greedy, use_tqdm=False)
        ]
    }
    if sampled := order.get("sampled"):
        params = [
            SamplingParams(
                temperature=sampled["temperature"],
                max_tokens=2,
                min_tokens=2,
                ignore_eos=True,
                n=PER_REQUEST,
                seed=None,
            )
            for _ in range(sampled["count"] // PER_REQUEST)
        ]
        outputs = llm.generate([sampled["prompt"]] * len(params), params, use_tqdm=False)
        answer["sampled"] = [list(one.token_ids) for output in outputs for one in output.outputs]
    Path(answer_file).write_text(json.dumps(answer))


def _margin(entry: dict[int, Any]) -> float:
    best = sorted((item.logprob for item in entry.values()), reverse=True)
    return float(best[0] - best[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
