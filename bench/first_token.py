"""Where the time to the first token goes, over what the bare engine takes: a budget table from real engines.

    python bench/first_token.py [--requests 60] [--quick]

One lane without a drafter, one bare `AsyncLLM` beside it, the same prompts, one request at a time, the four kinds
interleaved in shuffled order, so that all see the same machine:

    bare        AsyncLLM in process: prompt sent to first token                             E
    engine step AsyncLLM in process: time per token after the first                         S
    prefill     Prefill RPC from here straight to the prefill worker                        P
    decode      Decode RPC from here straight to the decode worker, to its first chunk      D
    whole       Generate through the router, to its first chunk                             W

    prefill RPC = P - E        hand-over = D - S        front, admission, pick, forwarding = W - P - D

W = E + (P - E) + S + (D - S) + (W - P - D): the table adds up by construction; each row is a difference of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import grpc
import uvloop
from benchkit import load, plan, results, stats, systems
from benchkit.clients import GrpcClient
from benchkit.fleet import Process
from benchkit.plan import Arm
from benchkit.results import BenchError, say
from run import CONFIGURATION, quiet_machine

from streamserve.runtime.grpc import CHANNEL_OPTIONS
from streamserve.v1 import common_pb2, worker_pb2

KINDS = ("bare", "direct", "whole")


class BareEngine:
    """`plain_engine.py` as a server: one prompt per line in, (TTFT, TPOT) in ms per line out."""

    def __init__(self, config: plan.Plan, directory: Path) -> None:
        task = {
            "model": str(results.ROOT / config.model),
            "flags": systems.flags(config.engine_args),
            "speculative_config": None,
            "tokens": config.output_tokens,
            "socket": str(directory / "bare.sock"),
        }
        command = [sys.executable, "-m", "benchkit.plain_engine", json.dumps(task)]
        environment = {**config.environment, **systems.path_environment()}
        self.socket = directory / "bare.sock"
        self.process = Process("bare", command, directory, environment)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, prompt: str) -> tuple[float, float]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self.socket))
        reader, writer = self._streams
        writer.write(json.dumps(prompt).encode() + b"\n")
        ttft, tpot = json.loads(await asyncio.wait_for(reader.readline(), 120))
        return float(ttft), float(tpot)


class Direct:
    """The two worker calls that the router makes, made from here."""

    def __init__(self, prefill: str, decode: str, tokens: int) -> None:
        self._channels = [grpc.aio.insecure_channel(a, options=CHANNEL_OPTIONS) for a in (prefill, decode)]
        self._prefill: Any = self._channels[0].unary_unary(
            "/streamserve.v1.WorkerService/Prefill",
            request_serializer=worker_pb2.PrefillRequest.SerializeToString,
            response_deserializer=worker_pb2.PrefillResponse.FromString,
        )
        self._decode: Any = self._channels[1].unary_stream(
            "/streamserve.v1.WorkerService/Decode",
            request_serializer=worker_pb2.DecodeRequest.SerializeToString,
            response_deserializer=worker_pb2.DecodeResponse.FromString,
        )
        self._sampling = common_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self._number = 0

    async def ask(self, prompt: str) -> tuple[float, float]:
        """(Prefill, Decode to its first chunk) in ms."""
        self._number += 1
        name = f"direct-{os.getpid()}-{self._number}"
        began = time.perf_counter()
        done = await self._prefill(
            worker_pb2.PrefillRequest(
                request_id=name, attempt=1, prompt=common_pb2.Prompt(text=prompt), sampling=self._sampling
            ),
            timeout=60,
        )
        prefilled = time.perf_counter()
        call = self._decode(
            worker_pb2.DecodeRequest(
                request_id=name,
                attempt=1,
                prompt=common_pb2.Prompt(token_ids=done.prompt_token_ids),
                sampling=self._sampling,
                kv_handle=done.kv_handle,
            ),
            timeout=60,
        )
        if await call.read() is grpc.aio.EOF:
            raise BenchError("Decode ended without a chunk")
        first = time.perf_counter()
        while await call.read() is not grpc.aio.EOF:
            pass
        return (prefilled - began) * 1e3, (first - prefilled) * 1e3

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def benchmark(given: argparse.Namespace, config: plan.Plan, directory: Path) -> dict[str, Any]:
    arm = Arm(name="c-none", system="StreamServe", depth="None")
    served = systems.StreamServe(False, config, directory)
    bare = BareEngine(config, directory)
    texts = load.prompts(config.prompts_per_workload)
    rng = Random(config.seed)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    try:
        say(f"starting three engines: one lane of {arm.name} and a bare one")
        bare.process.start()
        await asyncio.to_thread(served.fleet.start)
        await systems.wait_for(bare.socket.exists, bare.process, 240.0, "the bare engine")
        direct = Direct(
            served.fleet["lane-0-prefill-0"].ready["grpc"],
            served.fleet["lane-0-decode-0"].ready["grpc"],
            config.output_tokens,
        )
        client = GrpcClient(served.fleet.grpc)
        for number in range(-given.warmup, given.requests):
            text = texts[number % len(texts)]
            order = list(KINDS)
            rng.shuffle(order)
            for kind in order:
                if kind == "bare":
                    sample = await bare.ask(text)
                elif kind == "direct":
                    sample = await direct.ask(text)
                else:
                    one = await load.answer_times(client.generate, 0, number, text, config.output_tokens)
                    sample = (one.ttft_ms, one.tpot_ms)
                if number >= 0:
                    found[kind].append(sample)
            if number % 10 == 0:
                say(f"{number} of {given.requests}")
        await client.close()
        await direct.close()
    finally:
        await asyncio.to_thread(served.fleet.stop)
        systems.end_tree(bare.process, wait_seconds=0.0)
    return document(given, found)


def document(given: argparse.Namespace, found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    return {
        **results.stamp(),
        "heading": results.HEADING,
        "quick": given.quick,
        "requests": given.requests,
        "budget": budget(found),
        "samples": {kind: [[round(a, 3), round(b, 3)] for a, b in rows] for kind, rows in found.items()},
    }


def budget(found: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """The rows of the table, from samples of (bare: TTFT, TPOT), (direct: Prefill, Decode), (whole: TTFT, TPOT)."""

    def middle(kind: str, column: int) -> float:
        return stats.quantile([row[column] for row in found[kind]], 0.5)

    engine, step = middle("bare", 0), middle("bare", 1)
    prefill, decode, whole = middle("direct", 0), middle("direct", 1), middle("whole", 0)
    rows = [
        ("bare engine: prompt to first token", engine, "AsyncLLM in process"),
        ("+ prefill RPC, worker's front, KV held", prefill - engine, "Prefill called directly, less the bare engine"),
        ("+ decode's first step", step, "the bare engine's time per token"),
        (
            "+ KV transfer and hand-over",
            decode - step,
            "Decode called directly, to its first chunk, less one step",
        ),
        ("+ router: front, admission, pick, forwarding", whole - prefill - decode, "the whole, less both direct calls"),
        ("= StreamServe: request to first token", whole, "Generate through the router"),
        ("overhead over the bare engine", whole - engine, "the whole, less the bare engine"),
    ]
    return [{"name": name, "ms": round(value, 3), "how": how} for name, value, how in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=96, metavar="N", help="of each kind (default 96)")
    parser.add_argument("--warmup", type=int, default=6, metavar="N", help="of each kind, dropped (default 6)")
    parser.add_argument("--wait-minutes", type=float, default=10.0, metavar="M", help="for a quiet machine; default 10")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="a minute or two: its figures may not be quoted")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.warmup = 3, 1
    return results.as_a_script(lambda: run(given))


def run(given: argparse.Namespace) -> int:
    config = plan.load(CONFIGURATION).model_copy(update={"output_tokens": 16})
    if not given.quick:
        quiet_machine(given.wait_minutes)
    with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
        result = uvloop.run(benchmark(given, config, Path(name)))
    print(json.dumps(result["budget"], indent=1))
    if not given.quick and not given.no_write:
        say(f"written: {results.write('first-token', result).relative_to(results.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
