"""The simulator against the engine that it was recorded from: `make bench-simulator`.

    python bench/simulator.py [--quick]
    python bench/simulator.py --calibrations DIR     keep, or use again, what was recorded there

1. One lane of real engines, both workers with --record, serves one load (CALIBRATE): its step times, prefill times,
   transfers and acceptance become a calibration per role.
2. The same lane then serves the loads that are compared (LOADS): other concurrencies, other prompts, other lengths.
3. A lane of simulators replays the calibrations under the same loads.

Both sides get the same token ids, for the simulator's own language has several times as many tokens for a text.
Compared are the medians of TTFT and TPOT, as clients of the router see them; each load runs several times and the runs
of one side are pooled. Target: within 15 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from benchkit import load, plan, results, stats
from benchkit.clients import GrpcClient
from benchkit.fleet import Fleet, engine_arguments
from benchkit.load import Sample
from benchkit.results import BenchError, say
from run import CONFIGURATION, quiet_machine
from tokenizers import Tokenizer

from streamserve.contract.runtime_config import DepthPolicyName, SpeculationConfig

TARGET_PERCENT = 15.0
DEPTH = 3
ROLES = ("prefill", "decode")
RECORD_SECONDS = 6.0
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop. `tokens` are taken in turn, so lengths differ within a load."""

    name: str
    concurrency: int
    requests: int
    tokens: tuple[int, ...]
    skip_prompts: int

    def described(self) -> str:
        return f"{self.concurrency} at once, answers of {'/'.join(map(str, self.tokens))} tokens"


# Several loads, because small batches on a machine that is otherwise idle are faster than between big ones.
CALIBRATE = tuple(
    Load(name="calibration", concurrency=concurrency, requests=requests, tokens=(48, 96, 64, 128), skip_prompts=0)
    for concurrency, requests in ((1, 32), (3, 48), (6, 96))
)
LOADS = (
    Load(name="2 at once, answers of 160 tokens", concurrency=2, requests=40, tokens=(160,), skip_prompts=12),
    Load(name="4 at once, answers of 40 to 80 tokens", concurrency=4, requests=64, tokens=(40, 80), skip_prompts=12),
    Load(name="8 at once, answers of 112 tokens", concurrency=8, requests=80, tokens=(112,), skip_prompts=12),
)


def tokenizer(model: Path) -> Tokenize:
    """Token ids of a text in the recorded model's own vocabulary."""
    known = Tokenizer.from_file(str(model / "tokenizer.json"))
    return lambda text: list(known.encode(text).ids)


async def send(fleet: Fleet, one: Load, prompts: list[str], tokenize: Tokenize) -> list[Sample]:
    client = GrpcClient(fleet.grpc, tokenize)
    try:
        return await load.closed_loop(
            client.generate,
            prompts,
            concurrency=one.concurrency,
            requests=one.requests,
            warmup=one.concurrency,
            tokens=one.tokens,
        )
    finally:
        await client.close()


def speculation(max_depth: int) -> SpeculationConfig:
    return SpeculationConfig(policy=DepthPolicyName.FIXED, min_depth=0, max_depth=max_depth, fixed_depth=DEPTH)


def real_fleet(config: plan.Plan, directory: Path, records: dict[str, Path]) -> Fleet:
    common = ["--model", str(results.ROOT / config.model), *engine_arguments(config.engine_args)]
    common += ["--method", "DraftModel", "--draft", str(results.ROOT / config.draft)]
    common += ["--max-depth", str(config.max_depth)]
    return Fleet(
        directory,
        engine="Vllm",
        role_arguments={role: [*common, "--record", str(path)] for role, path in records.items()},
        speculation=speculation(config.max_depth),
        environment=config.environment,
    )


def simulated_fleet(config: plan.Plan, directory: Path, records: dict[str, Path]) -> Fleet:
    return Fleet(
        directory,
        engine="Simulator",
        role_arguments={
            role: ["--calibration", str(path), "--max-depth", str(config.max_depth)] for role, path in records.items()
        },
        speculation=speculation(config.max_depth),
        start_seconds=60.0,
    )


async def serve(
    fleet: Fleet, loads: list[Load], repeats: int, side: str, tokenize: Tokenize
) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {one.name: [] for one in loads}
    for repeat in range(repeats):
        for one in loads:
            # Twelve prompts of each workload for calibrating, the other twelve for comparing.
            samples = await send(fleet, one, load.prompts(12, skip=one.skip_prompts), tokenize)
            found[one.name] += samples
            medians = [stats.quantile([getattr(s, m) for s in samples], 0.5) for m in ("ttft_ms", "tpot_ms")]
            say(f"{side}, repeat {repeat}, {one.name}: TTFT {medians[0]:.1f} ms, TPOT {medians[1]:.2f} ms")
    return found


def run_on(fleet: Fleet, loads: list[Load], repeats: int, side: str, tokenize: Tokenize) -> dict[str, list[Sample]]:
    """`serve` on a started fleet. A loop of its own: the fleet's start and stop block."""
    return uvloop.run(serve(fleet, loads, repeats, side, tokenize))


def benchmark(given: argparse.Namespace, config: plan.Plan, directory: Path) -> dict[str, Any]:
    """Record, compare, judge."""
    calibrate, loads = CALIBRATE, list(LOADS)
    if given.quick:
        calibrate = (Load(name="calibration", concurrency=2, requests=8, tokens=(32, 48), skip_prompts=0),)
        loads = [Load(name="3 at once", concurrency=3, requests=6, tokens=(24,), skip_prompts=12)]
    kept: Path = given.calibrations or directory / "calibrations"
    kept.mkdir(parents=True, exist_ok=True)
    records = {role: kept / f"{role}.json" for role in ROLES}
    live = {role: directory / f"recording-{role}.json" for role in ROLES}
    real_directory, simulated_directory = directory / "real", directory / "simulated"
    real_directory.mkdir()
    simulated_directory.mkdir()
    tokenize = tokenizer(results.ROOT / config.model)
    say("starting one lane of real engines, recording")
    with real_fleet(config, real_directory, live) as fleet:
        if not all(path.exists() for path in records.values()):
            for one in calibrate:
                say(f"calibrating: {one.described()}")
                uvloop.run(send(fleet, one, load.prompts(12, skip=one.skip_prompts), tokenize))
            # The recorder writes every 5 s; the copy is what the calibration load alone has shown.
            time.sleep(RECORD_SECONDS)
            for role in ROLES:
                if not live[role].exists():
                    raise BenchError(f"the {role} worker recorded nothing; see whether it takes --record")
                shutil.copy(live[role], records[role])
        real = run_on(fleet, loads, given.repeats, "engine", tokenize)
    say("starting one lane of simulators with those calibrations")
    with simulated_fleet(config, simulated_directory, records) as fleet:
        simulated = run_on(fleet, loads, given.repeats, "simulator", tokenize)
    return {
        **results.stamp(),
        "heading": results.HEADING,
        "quick": given.quick,
        "repeats": given.repeats,
        "depth": DEPTH,
        "target_percent": TARGET_PERCENT,
        "calibrated_on": f"{'; '.join(one.described() for one in calibrate)}; depth {DEPTH}",
        "loads": [compared(one, real[one.name], simulated[one.name]) for one in loads],
        "calibrations": {role: json.loads(path.read_text()) for role, path in records.items()},
    }


def compared(one: Load, real: list[Sample], simulated: list[Sample]) -> dict[str, Any]:
    """Medians of both sides and the simulator's error in percent."""
    row: dict[str, Any] = {"name": one.name}
    for metric in ("ttft_ms", "tpot_ms"):
        mine = stats.quantile([getattr(s, metric) for s in simulated], 0.5)
        true = stats.quantile([getattr(s, metric) for s in real], 0.5)
        error = (mine / true - 1.0) * 100.0
        row[metric] = {
            "engine": round(true, 3),
            "simulator": round(mine, 3),
            "error_percent": round(error, 2),
            "holds": abs(error) <= TARGET_PERCENT,
        }
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each load (default 3)")
    parser.add_argument("--calibrations", type=Path, metavar="DIR", help="keep prefill.json and decode.json there")
    parser.add_argument("--wait-minutes", type=float, default=10.0, metavar="M", help="for a quiet machine; default 10")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="two minutes, for tests: its figures may not be quoted")
    given = parser.parse_args()
    if given.quick:
        given.repeats = 1
    return results.as_a_script(lambda: run(given))


def run(given: argparse.Namespace) -> int:
    config = plan.load(CONFIGURATION)
    if not given.quick:
        quiet_machine(given.wait_minutes)
    with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
        document = benchmark(given, config, Path(name))
    print(json.dumps({"loads": document["loads"]}, indent=1))
    if given.quick:
        return 0
    if not given.no_write:
        say(f"written: {results.write('simulator', document).relative_to(results.ROOT)}")
    return 0 if all(row[m]["holds"] for row in document["loads"] for m in ("ttft_ms", "tpot_ms")) else 2


if __name__ == "__main__":
    sys.exit(main())
