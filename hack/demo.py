"""Watch the whole path at work: `make demo`.

Starts `streamserve up` on a copy of examples/local/streampair.yaml (embedded Redis, router, two lanes of real vLLM
engines), streams 24 prompts through gRPC, edits the depth bounds in the YAML twice while tokens stream, and checks
what happened against the engines' own counters. Progress goes to stderr, the table and one JSON line to stdout.

KV bytes are counted by vLLM's NIXL statistics; what they should be is computed here from the model files:

    blocks x block tokens x 2 (keys and values) x sum over target and draft (layers x KV heads x head size) x bytes
    with blocks = ceil(prompt tokens / block tokens), every transfer counted

The blocks are those of the answers' prompts. Where NIXL counts another number of transfers than there are answers, an
attempt that was given up, or a lane's canary, has moved KV too: then they are the blocks that vLLM's schedulers saw
arrive, and never fewer than those of the prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from streamserve.runtime.grpc import channel
from streamserve.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
WORKLOADS = ("gsm8k", "humaneval", "alpaca", "sum")
PER_WORKLOAD = 6
CONCURRENCY = 6
MAX_TOKENS = 256
NARROW_AFTER = 6
WIDEN_AFTER = 14
ACK_LIMIT_MS = 2_000
START_SECONDS = 420
REQUEST_SECONDS = 300
STOP_SECONDS = 30
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class Answer:
    """One finished request, as the client saw it."""

    workload: str
    lane: str = ""
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    error: str = ""

    @property
    def depths(self) -> list[int]:
        return [depth for depth in range(17) if self.usage.depths_seen_mask >> depth & 1]


@dataclass(frozen=True)
class Counters:
    """Sums over the decode workers: bytes and transfers by NIXL's statistics, blocks by the schedulers' record."""

    kv_bytes: int
    kv_transfers: int
    kv_blocks: int
    per_lane: dict[str, int]
    depth_histogram: tuple[int, ...]

    def since(self, earlier: Counters) -> Counters:
        return Counters(
            self.kv_bytes - earlier.kv_bytes,
            self.kv_transfers - earlier.kv_transfers,
            self.kv_blocks - earlier.kv_blocks,
            {lane: count - earlier.per_lane.get(lane, 0) for lane, count in self.per_lane.items()},
            tuple(
                count - (earlier.depth_histogram[i] if i < len(earlier.depth_histogram) else 0)
                for i, count in enumerate(self.depth_histogram)
            ),
        )


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def load_prompts() -> list[tuple[str, str]]:
    """(workload, prompt), workloads alternating so that each is present all the time."""
    columns = []
    for workload in WORKLOADS:
        lines = (EXAMPLES / "prompts" / f"{workload}.jsonl").read_text().splitlines()
        columns.append([(workload, json.loads(line)["prompt"]) for line in lines[:PER_WORKLOAD]])
    return [row for rows in zip(*columns, strict=True) for row in rows]


def bytes_per_block(block_tokens: int) -> int:
    """Keys and values of one block over every layer of target and draft, from the model files."""
    total = 0
    for model in ("tiny-target", "tiny-draft"):
        config = json.loads((EXAMPLES / "models" / model / "config.json").read_text())
        layer = config["num_key_value_heads"] * config["head_dim"] * DTYPE_BYTES[config["dtype"]]
        total += 2 * config["num_hidden_layers"] * layer * block_tokens
    return total


def set_depth(file: Path, low: int, high: int) -> None:
    """Save the bounds as an editor would: a new file over the old one."""
    text, count = re.subn(r"depth: \{min: \d+, max: \d+", f"depth: {{min: {low}, max: {high}", file.read_text())
    if count != 1:
        raise SystemExit(f"error: {file} has no line `depth: {{min: …, max: …}}` to edit")
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


@contextlib.asynccontextmanager
async def running_up(folder: Path, engine: str) -> AsyncIterator[tuple[Path, dict[str, str], list[psutil.Process]]]:
    """`streamserve up`, ready; stopped as with Ctrl-C, and every process it had is given back for the last check."""
    (folder / "local").mkdir()
    (folder / "models").symlink_to(EXAMPLES / "models")
    spec = folder / "local" / "streampair.yaml"
    shutil.copy(EXAMPLES / "local" / "streampair.yaml", spec)
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "streamserve.cli.main", "up", "-f", str(spec), "--engine", engine]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file", str(ready)]
    say("starting streamserve up (2 lanes = 4 engines; all four load in two minutes or so on two cores)")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    echo = asyncio.create_task(_echo(process))
    everyone: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if process.returncode is not None:
                raise SystemExit(f"error: streamserve up ended with status {process.returncode}; see the lines above")
            if time.monotonic() > deadline:
                raise SystemExit(f"error: not ready within {START_SECONDS} s; see the lines above")
            await asyncio.sleep(0.2)
        everyone += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        yield spec, json.loads(ready.read_text()), everyone
    finally:
        if process.returncode is None:
            everyone += [p for p in psutil.Process(process.pid).children(recursive=True) if p not in everyone]
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS + 5)
        if process.returncode is None:
            process.kill()
        await echo


async def _echo(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        say(f"  up | {line.decode(errors='replace').rstrip()}")


class Fleet:
    """The workers, asked directly for their own counters."""

    def __init__(self, stubs: dict[str, tuple[str, str, worker_pb2_grpc.WorkerServiceStub]]) -> None:
        self._stubs = stubs

    async def states(self) -> dict[str, worker_pb2.GetStateResponse]:
        names = list(self._stubs)
        calls = [self._stubs[name][2].GetState(worker_pb2.GetStateRequest(), timeout=10) for name in names]
        return dict(zip(names, await asyncio.gather(*calls), strict=True))

    async def counters(self) -> Counters:
        states = {name: s for name, s in (await self.states()).items() if self._stubs[name][1] == "decode"}
        width = max(len(s.depth_histogram) for s in states.values())
        return Counters(
            sum(s.kv_bytes_received for s in states.values()),
            sum(s.kv_transfers_received for s in states.values()),
            sum(s.kv_bytes_expected // s.kv.bytes_per_block for s in states.values()),
            {self._stubs[name][0]: s.kv_bytes_received for name, s in states.items()},
            tuple(sum(sum(s.depth_histogram[i : i + 1]) for s in states.values()) for i in range(width)),
        )

    async def acknowledged(self, generation: int, since: float) -> float:
        """Milliseconds from `since` until every worker's scheduler had adopted the generation."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # a worker that was lost acknowledges nothing
                states = await self.states()
                if all(s.config_generation >= generation for s in states.values()):
                    return (time.monotonic() - since) * 1e3
            if (elapsed_ms := (time.monotonic() - since) * 1e3) > 10 * ACK_LIMIT_MS:
                return elapsed_ms
            await asyncio.sleep(0.02)


async def generate(stub: inference_pb2_grpc.InferenceServiceStub, workload: str, prompt: str) -> Answer:
    answer = Answer(workload)
    request = inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text=prompt),
        sampling=common_pb2.SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True),
        workload=workload,
    )
    start = time.monotonic()
    first = last = 0.0
    position = 0
    try:
        async for chunk in stub.Generate(request, timeout=REQUEST_SECONDS):
            last = time.monotonic()
            first = first or last
            if chunk.first_token_index != position:
                answer.error = f"position {chunk.first_token_index} came where {position} was due"
                return answer
            position += len(chunk.token_ids)
            if chunk.HasField("route"):
                answer.lane = chunk.route.lane
            if chunk.HasField("usage"):
                answer.usage.CopyFrom(chunk.usage)
    except Exception as error:
        answer.error = str(error)
        return answer
    answer.ttft_ms = (first - start) * 1e3
    answer.tpot_ms = (last - first) * 1e3 / max(1, position - 1)
    if position != MAX_TOKENS:
        answer.error = f"{position} tokens instead of {MAX_TOKENS}"
    return answer


async def drive(spec: Path, ready: dict[str, str]) -> tuple[list[Answer], Counters, list[float], worker_pb2.KvGeometry]:
    """Send everything; returns answers, counter differences, acknowledgement times in ms, the workers' KV blocks."""
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(channel(ready["grpc"]))
        inference = inference_pb2_grpc.InferenceServiceStub(router)
        admin = admin_pb2_grpc.AdminServiceStub(router)
        lanes = (await admin.GetFleet(admin_pb2.GetFleetRequest(), timeout=10)).lanes
        generation = (await admin.GetConfig(admin_pb2.GetConfigRequest(), timeout=10)).generation
        stubs = {}
        for lane in lanes:
            for view in lane.workers:
                connection = await stack.enter_async_context(channel(view.worker.address))
                stub = worker_pb2_grpc.WorkerServiceStub(connection)
                stubs[view.worker.id] = (lane.name, view.worker.role, stub)
        fleet = Fleet(stubs)
        before = await fleet.counters()
        kv = next(iter((await fleet.states()).values())).kv

        answers: list[Answer] = []
        acknowledgements: list[asyncio.Task[float]] = []
        limit = asyncio.Semaphore(CONCURRENCY)

        def edit(low: int, high: int) -> None:
            say(f"editing the YAML after {len(answers)} requests: depth {low}..{high}")
            saved = time.monotonic()
            set_depth(spec, low, high)
            due = generation + len(acknowledgements) + 1
            acknowledgements.append(asyncio.create_task(fleet.acknowledged(due, saved)))

        async def one(workload: str, prompt: str) -> None:
            async with limit:
                answer = await generate(inference, workload, prompt)
            answers.append(answer)
            say(f"{len(answers)} of {len(WORKLOADS) * PER_WORKLOAD} done: {workload} on {answer.lane} {answer.error}")
            if len(answers) == NARROW_AFTER:
                edit(0, 0)
            elif len(answers) == WIDEN_AFTER:
                edit(1, 6)

        await asyncio.gather(*(one(workload, prompt) for workload, prompt in load_prompts()))
        times = list(await asyncio.gather(*acknowledgements))
        try:
            after = await fleet.counters()
        except grpc.aio.AioRpcError as error:
            say(f"a worker was lost, its counters with it: {error.details()}")
            after = before
    return answers, after.since(before), times, kv


def table(answers: list[Answer], counters: Counters) -> str:
    rows = [("workload", "requests", "TTFT ms", "TPOT ms", "tokens", "accepted/draft", "depths", "lanes")]
    for workload in WORKLOADS:
        mine = [a for a in answers if a.workload == workload and not a.error]
        if not mine:
            rows.append((workload, "0", "-", "-", "0", "-", "-", "-"))
            continue
        drafted = sum(a.usage.drafted_tokens for a in mine)
        accepted = sum(a.usage.accepted_tokens for a in mine)
        rows.append(
            (
                workload,
                str(len(mine)),
                f"{statistics.median(a.ttft_ms for a in mine):.0f}",
                f"{statistics.median(a.tpot_ms for a in mine):.1f}",
                str(sum(a.usage.completion_tokens for a in mine)),
                f"{accepted / drafted:.2f}" if drafted else "-",
                ",".join(map(str, sorted({d for a in mine for d in a.depths}))),
                ",".join(sorted({a.lane for a in mine})),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{lane}: {count:,} bytes of KV received over NIXL" for lane, count in sorted(counters.per_lane.items())]
    return "\n".join(lines)


def summarize(
    answers: list[Answer], counters: Counters, acks: list[float], block_tokens: int, block_bytes: int
) -> dict[str, object]:
    good = [a for a in answers if not a.error]
    median: Callable[[list[float]], float] = lambda values: round(statistics.median(values), 1) if values else 0.0  # noqa: E731
    return {
        "requests_ok": len(good),
        "requests_failed": len(answers) - len(good),
        "lanes_used": len({a.lane for a in good}),
        "requests_depth_changed": sum(1 for a in good if 0 in a.depths and max(a.depths) > 0),
        "kv_bytes": counters.kv_bytes,
        "kv_bytes_expected": blocks_expected(good, counters, block_tokens) * block_bytes,
        "depths_seen": [depth for depth, steps in enumerate(counters.depth_histogram) if steps],
        "config_ack_ms_max": round(max(acks), 1) if acks else 0.0,
        "ttft_ms_p50": median([a.ttft_ms for a in good]),
        "tpot_ms_p50": median([a.tpot_ms for a in good]),
    }


def blocks_expected(good: list[Answer], counters: Counters, block_tokens: int) -> int:
    """KV blocks that had to move, every transfer counted."""
    answered = sum(-(-a.usage.prompt_tokens // block_tokens) for a in good)
    if counters.kv_transfers == len(good):
        return answered
    return max(answered, counters.kv_blocks)


def broken_promises(result: dict[str, object], acks: list[float], left: list[psutil.Process]) -> list[str]:
    """Every promise of the demo that did not hold, in words."""
    depths = result["depths_seen"]
    assert isinstance(depths, list)
    promises = [
        (result["requests_ok"] == 24, "24 requests are answered"),
        (result["lanes_used"] == 2, "both lanes serve"),
        (result["kv_bytes"] == result["kv_bytes_expected"], "the KV bytes moved are the bytes expected"),
        (result["kv_bytes"] != 0, "KV moves"),
        (len(depths) >= 3 and 0 in depths, "three depths are scheduled, 0 among them"),
        (result["requests_depth_changed"] != 0, "a running request sees depth 0 and a depth above it"),
        (len(acks) == 2 and max(acks) <= ACK_LIMIT_MS, "both edits are acknowledged within 2 s"),
        (not left, f"nothing is left running ({', '.join(str(p.pid) for p in left)})"),
    ]
    return [text for kept, text in promises if not kept]


async def demo(engine: str) -> int:
    with tempfile.TemporaryDirectory(prefix="streamserve-demo-") as name:
        async with running_up(Path(name), engine) as (spec, ready, everyone):
            say("every lane takes traffic; sending 24 prompts, 6 at a time, 256 tokens each")
            answers, counters, acks, kv = await drive(spec, ready)
            say("stopping")
    gone, left = psutil.wait_procs(everyone, timeout=5)
    say(f"{len(gone)} processes ended, {len(left)} left")
    # A simulated model is as large as its calibration says.
    block_bytes = bytes_per_block(kv.block_tokens) if engine == "Vllm" else kv.bytes_per_block
    result = summarize(answers, counters, acks, kv.block_tokens, block_bytes)
    broken = broken_promises(result, acks, left)
    print(table(answers, counters))
    for answer in answers:
        if answer.error:
            print(f"failed: {answer.workload}: {answer.error}", file=sys.stderr)
    for text in broken:
        print(f"not kept: {text}", file=sys.stderr)
    print(json.dumps(result), flush=True)
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("Vllm", "Simulator"), default="Vllm", help="Simulator: the path, not vLLM")
    return asyncio.run(demo(parser.parse_args().engine))


if __name__ == "__main__":
    sys.exit(main())
