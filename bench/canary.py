"""How often a canary is judged rightly, and how soon: the operator's own law on a simulated load.

    python bench/canary.py [--quick] [--runs N]

Each run is one edit of `speculation` on a pair with one canary lane: the law is asked every `reconcile_seconds` with
the records that routers would have published by then, until it no longer holds. Load, noise and rows are in
canary.yaml, which was committed before any result. Nothing here speeds anything up: it is about verdicts.

The first twenty runs of a row carry the claim, all of them the rates. "wrong" is a verdict against the truth: worse
although goodput is at least rollbackBelowPercent, or promoted although it is less.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchkit import results, stats
from benchkit.canary_load import Load, Row, World, read
from benchkit.results import say

from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.runtime_config import ConfigId, DepthPolicyName, RuntimeConfig, SpeculationConfig
from streamserve.operator.canary.law import Hold, Promote, RollBack, Wanted, decide
from streamserve.operator.canary.memory import Memory, Settled

LOAD = Path(__file__).with_name("canary.yaml")
UID = "bench"
MAX_DEPTH = 6
OLD = SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=MAX_DEPTH, fixed_depth=3)
NEW = SpeculationConfig(policy=DepthPolicyName.GOODPUT, max_depth=MAX_DEPTH)
PROMOTED = "Promoted"


@dataclass(frozen=True, slots=True)
class Run:
    """How one canary ended: Promoted, CanaryWorse or CanaryInconclusive."""

    verdict: str
    seconds: float
    ratio: float


def run(load: Load, row: Row, rng: Random) -> Run:
    began = 60.0 * 29_000_000 + rng.uniform(0, 60)
    lanes = tuple(f"lane-{lane}" for lane in range(load.lanes))
    wanted = Wanted(
        config=RuntimeConfig(id=ConfigId(uid=UID, generation=2), speculation=NEW),
        rules=load.rules,
        lanes=lanes,
        revision="r1",
        max_depth=MAX_DEPTH,
    )
    before = RuntimeConfig(id=ConfigId(uid=UID, generation=1), speculation=OLD)
    outcome = decide(wanted, Memory(before, Settled()), {}, began)
    canary = outcome.memory.config.canary
    if canary is None:
        raise AssertionError("the law did not begin a canary")
    world = World(load, row, canary.lanes, rng)
    records: list[GoodputMinute] = []
    # The minute in which the configuration changed is not recorded: the first whole one comes after it.
    minute, now = int(began // 60) + 1, began
    while isinstance(outcome.verdict, Hold):
        now += load.reconcile_seconds
        while 60 * (minute + 1) + load.publish_seconds <= now:
            record = world.minute(minute, outcome.memory.config.id)
            if record is not None:
                records.append(record)
            minute += 1
        outcome = decide(wanted, outcome.memory, {"router-0": records}, now)
    ratio = outcome.comparison.ratio if outcome.comparison is not None else math.nan
    match outcome.verdict:
        case RollBack(reason, _):
            return Run(reason.value, now - began, ratio)
        case Promote():
            return Run(PROMOTED, now - began, ratio)
        case other:
            raise AssertionError(f"a canary that nobody touched ended with {other}")


def play(load: Load, row: Row, runs: int, seed: object) -> list[Run]:
    """Each run has a generator of its own, so that its load does not depend on how many runs there are."""
    under = load.under(row)
    return [run(under, row, Random(f"{seed}/{row.name}/{number}")) for number in range(runs)]


def kept(row: Row, runs: Sequence[Run]) -> bool:
    """Whether the runs that carry the claim gave what the row wants."""
    found = Counter(each.verdict for each in runs)
    return all(least <= found[verdict] <= most for verdict, (least, most) in row.want.items())


def told(load: Load, row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[: load.acceptance_runs]
    worse = 100 - row.worse_percent < load.rules.rollback_below_percent
    wrong = PROMOTED if worse else "CanaryWorse"
    times = [each.seconds for each in runs]
    return {
        "row": row.name,
        "first_runs": dict(sorted(Counter(each.verdict for each in first).items())),
        "want": row.want,
        "kept": kept(row, first) if row.want else None,
        "runs": len(runs),
        "percent": {
            verdict: round(100 * sum(each.verdict == verdict for each in runs) / len(runs), 1)
            for verdict in (PROMOTED, "CanaryWorse", "CanaryInconclusive")
        },
        "wrong": wrong,
        "wrong_percent": round(100 * sum(each.verdict == wrong for each in runs) / len(runs), 1),
        "median_ratio": round(stats.quantile([each.ratio for each in runs], 0.5), 3),
        "seconds_to_verdict": {
            "median": round(stats.quantile(times, 0.5)),
            "p90": round(stats.quantile(times, 0.9)),
        },
    }


def provenance() -> dict[str, Any]:
    """Which commits last changed the load and the law, and whether they are as committed."""
    paths = {"load": ["bench/canary.yaml"], "law": ["operator/streamserve/operator/canary", "bench/canary.py"]}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=results.ROOT, check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout.strip()

    try:
        found = {name: git("log", "-1", "--format=%h %cI", "--", *where) for name, where in paths.items()}
        changed = git("status", "--porcelain", "--", *(path for where in paths.values() for path in where))
    except (OSError, subprocess.SubprocessError):
        return {"load": "unknown", "law": "unknown"}
    return {**found, "as_committed": not changed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each row (default: what canary.yaml says)")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="seconds, for tests: its figures may not be quoted")
    given = parser.parse_args()
    load = read(LOAD)
    count = 3 if given.quick else given.runs or load.runs
    head = {**results.stamp(), "sources": provenance(), "load": load.fingerprint, "seed": load.seed}
    # Never the committed seed: a quick run must not show what the whole one will say.
    seed = "quick" if given.quick else load.seed
    rows = []
    for row in load.rows[:2] if given.quick else load.rows:
        rows.append(told(load, row, play(load, row, count, seed)))
        say(f"{row.name}: {rows[-1]['first_runs']} of the first, {rows[-1]['percent']} % of {count}")
    document = {**head, "heading": "verdicts on a simulated load", "quick": given.quick, "rows": rows}
    print(json.dumps({"rows": rows}, indent=1))
    if not given.quick and not given.no_write:
        say(f"written: {results.write('canary', document).relative_to(results.ROOT)}")
    return 0 if given.quick or all(row["kept"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
