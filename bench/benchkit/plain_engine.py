"""vLLM's AsyncLLM in this process: under the same closed loop as the servers (arm a), or prompt by prompt on demand.

Started by systems.py and first_token.py with a task in JSON; "socket" asks for the second way.
"""

from __future__ import annotations

import asyncio
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


async def answer(task: dict[str, Any]) -> None:
    """A JSON string per line in, [TTFT, TPOT] in ms per line out, until the connection closes."""
    llm = engine(task)
    generate = generator(llm)
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            sample = await load.answer_times(generate, 0, 0, json.loads(line), task["tokens"])
            writer.write(json.dumps([sample.ttft_ms, sample.tpot_ms]).encode() + b"\n")
        writer.close()
        done.set()

    await asyncio.start_unix_server(serve, task["socket"])
    await done.wait()
    llm.shutdown()


def main() -> None:
    import uvloop

    task = json.loads(sys.argv[1])
    if "socket" in task:
        uvloop.run(answer(task))
        return
    found = uvloop.run(measure(task))
    out = Path(task["out"])
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(found))
    fresh.replace(out)


if __name__ == "__main__":
    main()
