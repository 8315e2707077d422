"""vLLM's AsyncLLM in this process, under the same closed loop as the servers: arm (a). Started by systems.py."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from benchkit import load


def engine(task: dict[str, Any]) -> Any:
    """AsyncLLM with the task's flags."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", task["model"], *task["flags"]]))
    args.speculative_config = task["speculative_config"]
    return AsyncLLM.from_engine_args(args)


def generator(llm: Any) -> load.Generate:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    numbers = itertools.count()

    async def generate(slot: int, prompt: str, tokens: int) -> AsyncGenerator[int | None, None]:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        total = 0
        async for output in llm.generate(prompt, params, f"bench-{next(numbers)}"):
            if output.outputs[0].token_ids:
                total += len(output.outputs[0].token_ids)
                yield None
        yield total

    return generate


async def measure(task: dict[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    llm = engine(task)
    generate = generator(llm)
    texts = load.prompts(task["prompts_per_workload"])
    found = {}
    for concurrency, requests in task["requests"].items():
        samples = await load.closed_loop(
            generate,
            texts,
            concurrency=int(concurrency),
            requests=requests,
            warmup=task["warmup"],
            tokens=task["tokens"],
        )
        found[concurrency] = [(s.key, s.ttft_ms, s.tpot_ms) for s in samples]
    llm.shutdown()
    return found


def main() -> None:
    import uvloop

    task = json.loads(sys.argv[1])
    found = uvloop.run(measure(task))
    out = Path(task["out"])
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(found))
    fresh.replace(out)


if __name__ == "__main__":
    main()
