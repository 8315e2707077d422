"""What plain vLLM answers to the repository's prompts: asked once, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny_pair import prompts

SECONDS = 300
PER_WORKLOAD = 12
TOKENS = 128
# One of the prompts whose continuation is wide open: no token has more than a sixth of the probability.
SAMPLED_PROMPT = "humaneval", 3
TEMPERATURE = 1.0
SAMPLES = 20_000


@dataclass(frozen=True)
class Expected:
    """Plain vLLM's continuation of one prompt; `margins` is the distance of the two best logits by position."""

    workload: str
    prompt: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    greedy: tuple[Expected, ...]
    sampled_prompt: str
    temperature: float
    sampled: tuple[tuple[int, int], ...]


def compute(folder: Path) -> Reference:
    chosen = prompts(PER_WORKLOAD)
    workload, number = SAMPLED_PROMPT
    sampled = [prompt for name, prompt in chosen if name == workload][number]
    order = {
        "greedy": [prompt for _, prompt in chosen],
        "max_tokens": TOKENS,
        "sampled": {"prompt": sampled, "temperature": TEMPERATURE, "count": SAMPLES},
    }
    (folder / "order.json").write_text(json.dumps(order))
    script = Path(__file__).with_name("plain_vllm.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "order.json"), str(folder / "answer.json")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"plain vLLM failed:\n{done.stderr[-4000:]}"
    answer = json.loads((folder / "answer.json").read_text())
    rows = [
        Expected(name, prompt, row["prompt_tokens"], tuple(row["token_ids"]), tuple(row["margins"]))
        for (name, prompt), row in zip(chosen, answer["greedy"], strict=True)
    ]
    return Reference(tuple(rows), sampled, TEMPERATURE, tuple((a, b) for a, b in answer["sampled"]))
