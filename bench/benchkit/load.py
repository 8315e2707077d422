"""A closed loop: `concurrency` clients, each of which sends its next request when its last answer is complete.

    TTFT = first token received - request sent            TPOT = (last token - first token) / (tokens - 1)

Both in milliseconds, as the client sees them. Every answer has the same number of tokens, so TPOT is comparable
between systems that send one token a message and those that send several.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchkit.results import ROOT, BenchError

WORKLOADS: Final = ("gsm8k", "humaneval", "alpaca", "sum")
REQUEST_SECONDS: Final = 120.0

# (client, prompt, tokens wanted): yields None for each message with tokens, then their number.
Generate = Callable[[int, str, int], AsyncGenerator[int | None, None]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. `key` is the request's place in the run: the same in every arm."""

    key: int
    ttft_ms: float
    tpot_ms: float


def prompts(per_workload: int, folder: Path = ROOT / "examples" / "prompts", skip: int = 0) -> list[str]:
    """`per_workload` prompts of each workload, alternating, after the first `skip` of each."""
    columns = []
    for workload in WORKLOADS:
        lines = (folder / f"{workload}.jsonl").read_text().splitlines()[skip : skip + per_workload]
        if len(lines) < per_workload:
            raise BenchError(f"{workload}.jsonl has fewer than {skip + per_workload} prompts")
        columns.append([str(json.loads(line)["prompt"]) for line in lines])
    return [prompt for row in zip(*columns, strict=True) for prompt in row]


async def closed_loop(
    generate: Generate,
    texts: Sequence[str],
    *,
    concurrency: int,
    requests: int,
    warmup: int,
    tokens: int | Sequence[int],
    first: int = 0,
) -> list[Sample]:
    """Send `warmup` requests, dropped, then `requests`, kept, numbered from `first` on. `tokens` may differ by request
    (in turn).

    Raises BenchError when one fails.
    """
    total = warmup + requests
    numbers = iter(range(total))
    samples: list[Sample] = []
    problem: BenchError | None = None

    async def client(slot: int) -> None:
        for number in numbers:
            # A measured request has the same prompt however many went before it.
            place = first + number - warmup
            want = tokens if isinstance(tokens, int) else tokens[place % len(tokens)]
            sample = await answer_times(generate, slot, place, texts[place % len(texts)], want)
            if number >= warmup:
                samples.append(sample)

    try:
        async with asyncio.TaskGroup() as group:
            for slot in range(min(concurrency, total)):
                group.create_task(client(slot))
    except* (BenchError, OSError, TimeoutError) as failed:
        error = failed.exceptions[0]
        said = f"nothing within {REQUEST_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
        problem = BenchError(f"a request failed: {said or type(error).__name__}")
    if problem is not None:
        raise problem
    return sorted(samples, key=lambda sample: sample.key)


async def answer_times(generate: Generate, slot: int, key: int, text: str, tokens: int) -> Sample:
    """One request, timed. Raises BenchError for an answer of another length."""
    began = time.perf_counter()
    first = last = 0.0
    received = 0
    async with asyncio.timeout(REQUEST_SECONDS):
        async for count in generate(slot, text, tokens):
            if count is None:
                last = time.perf_counter()
                first = first or last
            else:
                received = count
    if received != tokens:
        raise BenchError(f"an answer has {received} tokens instead of {tokens}")
    return Sample(key, (first - began) * 1e3, (last - first) * 1e3 / max(1, tokens - 1))
