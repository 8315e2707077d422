"""The simulator against the engine that it was recorded from: `make bench-simulator`.

    python bench/simulator.py [--quick]
    python bench/simulator.py --calibrations DIR     keep, or use again, what was recorded there

1. One lane of real engines, both workers with --record, serves one load (CALIBRATE): its step times, prefill times,
   transfers and acceptance become a calibration per role.
2. A second such lane, not recorded, serves the loads that are compared (LOADS): other concurrencies, other prompts,
   other lengths.
3. A lane of simulators replays the calibrations under the same loads.

The first two take turns, a part of each load at a time and seconds apart: a machine changes its speed within minutes,
and what was recorded in a slow one says nothing about a fast one. The simulators sleep through most of their time, so
they may come later.

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
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
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
SEED = 20261123
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop of so many `requests` in each turn, whose answers have one of `tokens` after the other."""

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
    for concurrency, requests in ((1, 8), (3, 12), (6, 24))
)
LOADS = (
    Load(name="2 at once, answers of 160 tokens", concurrency=2, requests=20, tokens=(160,), skip_prompts=12),
    Load(name="4 at once, answers of 40 to 80 tokens", concurrency=4, requests=32, tokens=(40, 80), skip_prompts=12),
    Load(name="8 at once, answers of 112 tokens", concurrency=8, requests=40, tokens=(112,), skip_prompts=12),
)


def tokenizer(model: Path) -> Tokenize:
    """Token ids of a text in the recorded model's own vocabulary."""
    known = Tokenizer.from_file(str(model / "tokenizer.json"))
    return lambda text: list(known.encode(text).ids)


async def send(fleet: Fleet, one: Load, tokenize: Tokenize, turn: int) -> list[Sample]:
    """One turn of it; prompts go on where the turn before ended."""
    client = GrpcClient(fleet.grpc, tokenize)
    try:
        # Twelve prompts of each workload for calibrating, the other twelve for comparing.
        return await load.closed_loop(
            client.generate,
            load.prompts(12, skip=one.skip_prompts),
            concurrency=one.concurrency,
            requests=one.requests,
            warmup=one.concurrency,
            tokens=one.tokens,
            first=turn * one.requests,
        )
    finally:
        await client.close()


def speculation(max_depth: int) -> SpeculationConfig:
    return SpeculationConfig(policy=DepthPolicyName.FIXED, min_depth=0, max_depth=max_depth, fixed_depth=DEPTH)


def real_fleet(config: plan.Plan, directory: Path, records: Mapping[str, Path] | None = None) -> Fleet:
    """`records`: the files that its workers write their calibrations to."""
    common = ["--model", str(results.ROOT / config.model), *engine_arguments(config.engine_args)]
    common += ["--method", "DraftModel", "--draft", str(results.ROOT / config.draft)]
    common += ["--max-depth", str(config.max_depth)]
    return Fleet(
        directory,
        engine="Vllm",
        role_arguments={role: [*common, *(["--record", str(records[role])] if records else [])] for role in ROLES},
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


async def serve(seats: list[tuple[str, Fleet, Load]], turns: int, tokenize: Tokenize) -> dict[str, list[Sample]]:
    """Turns of all of them, in another order each time; the samples of all turns by the load's name."""
    found: dict[str, list[Sample]] = {one.name: [] for _, _, one in seats}
    rng = Random(SEED)
    for turn in range(turns):
        for side, fleet, one in rng.sample(seats, len(seats)):
            samples = await send(fleet, one, tokenize, turn)
            found[one.name] += samples
            medians = [stats.quantile([getattr(s, m) for s in samples], 0.5) for m in ("ttft_ms", "tpot_ms")]
            say(f"turn {turn + 1} of {turns}, {side}, {one.name}: TTFT {medians[0]:.1f} ms, TPOT {medians[1]:.2f} ms")
    return found


def run_on(seats: list[tuple[str, Fleet, Load]], turns: int, tokenize: Tokenize) -> dict[str, list[Sample]]:
    """`serve` on started fleets. A loop of its own: a fleet's start and stop block."""
    return uvloop.run(serve(seats, turns, tokenize))


def benchmark(given: argparse.Namespace, config: plan.Plan, directory: Path) -> dict[str, Any]:
    """Record, compare, judge."""
    calibrate, loads = list(CALIBRATE), list(LOADS)
    if given.quick:
        calibrate = [Load(name="calibration", concurrency=2, requests=8, tokens=(32, 48), skip_prompts=0)]
        loads = [Load(name="3 at once", concurrency=3, requests=6, tokens=(24,), skip_prompts=12)]
    kept: Path = given.calibrations or directory / "calibrations"
    kept.mkdir(parents=True, exist_ok=True)
    records = {role: kept / f"{role}.json" for role in ROLES}
    live = {role: directory / f"recording-{role}.json" for role in ROLES}
    folders = {name: directory / name for name in ("recorded", "real", "simulated")}
    for folder in folders.values():
        folder.mkdir()
    tokenize = tokenizer(results.ROOT / config.model)
    with ExitStack() as engines:
        say("starting a lane of real engines")
        measured = engines.enter_context(real_fleet(config, folders["real"]))
        seats = [("engine", measured, one) for one in loads]
        record = not all(path.exists() for path in records.values())
        if record:
            say("starting another, recording")
            recorded = engines.enter_context(real_fleet(config, folders["recorded"], live))
            seats += [("recorded", recorded, one) for one in calibrate]
        real = run_on(seats, given.turns, tokenize)
        if record:
            # The recorder writes every 5 s.
            time.sleep(RECORD_SECONDS)
            for role in ROLES:
                if not live[role].exists():
                    raise BenchError(f"the {role} worker recorded nothing; see whether it takes --record")
                shutil.copy(live[role], records[role])
    say("starting one lane of simulators with those calibrations")
    with simulated_fleet(config, folders["simulated"], records) as fleet:
        simulated = run_on([("simulator", fleet, one) for one in loads], given.turns, tokenize)
    return {
        **results.stamp(),
        "heading": results.HEADING,
        "quick": given.quick,
        "turns": given.turns,
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
    parser.add_argument("--turns", type=int, default=6, metavar="N", help="of each load (default 6)")
    parser.add_argument("--calibrations", type=Path, metavar="DIR", help="keep prefill.json and decode.json there")
    parser.add_argument("--wait-minutes", type=float, default=10.0, metavar="M", help="for a quiet machine; default 10")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="two minutes, for tests: its figures may not be quoted")
    given = parser.parse_args()
    if given.quick:
        given.turns = 1
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
