"""What the router costs per streamed message, against the least that a gRPC proxy in Python can cost.

    python bench/router_cpu.py [--quick] [--repeats 7] [--streams 200]

One simulator lane; 200 streams run through the router, then 200 through a bare grpc.aio proxy that forwards bytes,
alternating in shuffled order, both in front of the same decode worker. CPU is user + system time of the whole process
from /proc, messages are counted by the client. Two figures, both as medians over the repeats and as paired ratios:

    steady    a window in which every stream runs: the cost of a message and nothing else (the target: at most 1.4)
    whole     from the first request to the last end: admission, pick, prefill and signals included

The bare proxy does no prefill: its client asks the decode worker to compute the prompt itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
import uvloop
from benchkit import results, stats
from benchkit.fleet import Fleet, Process, engine_arguments
from benchkit.results import BenchError, say

from streamserve.contract.runtime_config import DepthPolicyName, SpeculationConfig
from streamserve.runtime.grpc import CHANNEL_OPTIONS
from streamserve.v1 import common_pb2, inference_pb2, worker_pb2

TARGET = 1.4
GENERATE = "/streamserve.v1.InferenceService/Generate"
DECODE = "/streamserve.v1.WorkerService/Decode"
PROMPT_TOKENS = 32
STALL_SECONDS = 60.0
LEAST_WINDOW_SECONDS = 1.0


@dataclass(slots=True)
class Count:
    messages: int = 0
    started: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU microseconds per message in the steady window and over everything."""

    steady_us: float
    whole_us: float
    messages_per_second: float
    tokens_per_message: float


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def measure(
    address: str, method: str, request: Callable[[int], bytes], pid: int, streams: int, tokens: int, window: float
) -> Cost:
    """Run the streams once. Raises BenchError when one fails."""
    count = Count()
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_stream(method)

        async def stream(number: int) -> None:
            answer = call(request(number), timeout=600)
            if await answer.read() is grpc.aio.EOF:
                raise BenchError(f"{method} ended without a message")
            count.messages += 1
            count.started += 1
            while await answer.read() is not grpc.aio.EOF:
                count.messages += 1
            count.ended += 1

        began = cpu_seconds(pid)
        tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
        limit = time.monotonic() + STALL_SECONDS
        while count.started < streams:
            await asyncio.sleep(0.05)
            for task in tasks:
                if task.done() and task.exception():
                    raise BenchError(f"a stream failed: {task.exception()}")
            if time.monotonic() > limit:
                raise BenchError(f"only {count.started} of {streams} streams began within {STALL_SECONDS:g} s")
        await asyncio.sleep(0.5)
        start = last = (cpu_seconds(pid), count.messages, time.monotonic())
        while last[2] - start[2] < window:
            await asyncio.sleep(0.25)
            now = (cpu_seconds(pid), count.messages, time.monotonic())
            if count.ended:
                # On a busy machine streams reach their end at different times; the window closes before.
                break
            last = now
        cpu, messages, clock = (b - a for a, b in zip(start, last, strict=True))
        if clock < LEAST_WINDOW_SECONDS:
            raise BenchError(f"every stream ran for {clock:.1f} s only; ask for more --tokens")
        await asyncio.gather(*tasks)
        whole = cpu_seconds(pid) - began
    return Cost(
        steady_us=cpu / messages * 1e6,
        whole_us=whole / count.messages * 1e6,
        messages_per_second=messages / clock,
        tokens_per_message=streams * tokens / count.messages,
    )


def through_router(tokens: int) -> Callable[[int], bytes]:
    def request(number: int) -> bytes:
        message = inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=_prompt(number))),
            sampling=common_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
        )
        return bytes(message.SerializeToString())

    return request


def through_proxy(tokens: int, run: int) -> Callable[[int], bytes]:
    def request(number: int) -> bytes:
        message = worker_pb2.DecodeRequest(
            request_id=f"bare-{run}-{number}",
            attempt=1,
            prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=_prompt(number))),
            sampling=common_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
        )
        return bytes(message.SerializeToString())

    return request


def _prompt(number: int) -> bytes:
    """Ids inside the simulator's vocabulary, another prompt for each stream."""
    return b"".join(((number * 7 + n) % 4_000 + 1).to_bytes(4, "little") for n in range(PROMPT_TOKENS))


async def benchmark(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    simulator = engine_arguments({"max-num-seqs": "512", "simulator-step-seconds": str(given.step_seconds)})
    fleet = Fleet(
        directory,
        engine="Simulator",
        role_arguments={"prefill": simulator, "decode": simulator},
        speculation=SpeculationConfig(policy=DepthPolicyName.OFF),
        start_seconds=60.0,
    )
    ready = directory / "bare.ready.json"
    bare: Process | None = None
    rng = Random(given.seed)
    rows: dict[str, dict[int, Cost]] = {"router": {}, "bare": {}}
    with fleet:
        try:
            backend = fleet["lane-0-decode-0"].ready["grpc"]
            script = str(Path(__file__).with_name("benchkit") / "bare_proxy.py")
            command = [sys.executable, script, "--backend", backend, "--ready-file", str(ready)]
            bare = Process("bare-proxy", command, directory, {}, ready).start().wait_ready()
            # The first round warms both and is dropped.
            for repeat in range(-1, given.repeats):
                order = ["router", "bare"]
                rng.shuffle(order)
                for arm in order:
                    if arm == "router":
                        target = (fleet.grpc, GENERATE, through_router(given.tokens), fleet.router.pid)
                    else:
                        target = (bare.ready["grpc"], DECODE, through_proxy(given.tokens, repeat), bare.pid)
                    cost = await measure(*target, given.streams, given.tokens, given.window)
                    say(
                        f"repeat {repeat}: {arm} {cost.steady_us:.1f} us/message steady, {cost.whole_us:.1f} whole, "
                        f"{cost.messages_per_second:.0f} messages/s, {cost.tokens_per_message:.2f} tokens each"
                    )
                    if repeat >= 0:
                        rows[arm][repeat] = cost
        finally:
            if bare is not None:
                bare.kill()
    return report(given, rows)


def report(given: argparse.Namespace, rows: dict[str, dict[int, Cost]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in ("steady_us", "whole_us"):
        values = {arm: {r: {0: getattr(c, name)} for r, c in costs.items()} for arm, costs in rows.items()}
        ratio = stats.ratio_interval(stats.paired(values["router"], values["bare"]), seed=given.seed)
        entry: dict[str, Any] = {"ratio": ratio.point, "ratio_low": ratio.low, "ratio_high": ratio.high}
        for arm, costs in rows.items():
            entry[arm] = stats.summarize([getattr(cost, name) for cost in costs.values()]).median
        figures[name] = entry
    return {
        **results.stamp(),
        "heading": "router CPU per streamed message, simulator workers",
        "quick": given.quick,
        "streams": given.streams,
        "tokens_per_stream": given.tokens,
        "step_seconds": given.step_seconds,
        "repeats": given.repeats,
        "tokens_per_message": {
            arm: stats.summarize([c.tokens_per_message for c in costs.values()]).median for arm, costs in rows.items()
        },
        "messages_per_second": {
            arm: stats.summarize([c.messages_per_second for c in costs.values()]).median for arm, costs in rows.items()
        },
        "target_ratio": TARGET,
        "target_holds": figures["steady_us"]["ratio"] <= TARGET,
        "figures": figures,
        "runs": {
            arm: [{"steady_us": cost.steady_us, "whole_us": cost.whole_us} for cost in costs.values()]
            for arm, costs in rows.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="measured rounds (default 7)")
    parser.add_argument("--streams", type=int, default=200, metavar="N", help="streams at once (default 200)")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="tokens per stream (default 256)")
    parser.add_argument("--step-seconds", type=float, default=0.1, metavar="S", help="simulated step (default 0.1)")
    parser.add_argument("--window", type=float, default=12.0, metavar="S", help="steady window (default 12)")
    parser.add_argument("--seed", type=int, default=20261121, metavar="N")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="a minute, for tests: its figures may not be quoted")
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.tokens, given.window, given.streams = 1, 50, 2.0, min(given.streams, 50)
    return results.as_a_script(lambda: run(given))


def run(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
        document = uvloop.run(benchmark(given, Path(name)))
    print(json.dumps({k: v for k, v in document.items() if k not in ("runs", "machine")}, indent=1))
    if not given.quick and not given.no_write:
        say(f"written: {results.write('router-cpu', document).relative_to(results.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
