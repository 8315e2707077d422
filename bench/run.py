"""One lane of StreamServe against plain vLLM and against vLLM's own prefill/decode servers: `make bench`.

    python bench/run.py                        go on where the last run stopped, until all is done
    python bench/run.py --slice-minutes 25     the same, but stop before 25 minutes are over
    python bench/run.py --quick                two minutes, two arms: whether it works, not how fast

bench/path.yaml says what runs. Each finished arm of each repeat is one line of bench/results/path.work.jsonl; when
none is missing, bench/results/path-DATE.json and docs/benchmarks.md are written. The machine has to be quiet: before
each start it is watched for a few seconds, and a busy one is waited for (--wait-minutes), then refused.

Exit status: 0 when everything is measured, 3 when a slice ended and work is left, 1 for an error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import uvloop
from benchkit import load, plan, report, results, systems
from benchkit.plan import Plan, Share, Sitting
from benchkit.results import BenchError, WorkFile, say

CONFIGURATION = Path(__file__).with_name("path.yaml")
WORK = results.RESULTS / "path.work.jsonl"
SITTING_MINUTES = 4.0
QUIET_CORES = 0.25


def quiet_machine(wait_minutes: float) -> float:
    """Cores that others use, once that is little. Raises BenchError when it stays much, or other engines run."""
    end = time.monotonic() + wait_minutes * 60
    told = False
    while True:
        engines = [p.pid for p in psutil.process_iter(["name"]) if "EngineCor" in (p.info["name"] or "")]
        busy = psutil.cpu_percent(3.0) / 100 * (psutil.cpu_count() or 1)
        if not engines and busy <= QUIET_CORES:
            return busy
        why = f"other vLLM engines run ({engines})" if engines else f"{busy:.1f} cores are in use"
        if time.monotonic() > end:
            raise BenchError(f"the machine is not quiet: {why}; wait for it, or stop what runs")
        if not told:
            say(f"waiting for a quiet machine: {why}")
            told = True


async def run_sitting(sitting: Sitting, config: Plan, work: WorkFile, quiet: float) -> None:
    """Start the sitting's processes, measure its arms in turn, append a line for each."""
    texts = load.prompts(config.prompts_per_workload)
    samples: dict[str, dict[int, list[load.Sample]]] = {
        arm.name: {concurrency: [] for concurrency in config.requests} for arm in sitting.arms
    }
    failed = ""
    with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
        say(f"repeat {sitting.repeat}: starting {sitting.name}")
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            serving: dict[str, systems.System] = {}
            for group, arms in sitting.groups.items():
                folder = Path(name) / group
                folder.mkdir()
                system = await stack.enter_async_context(systems.prepared(arms, config, folder))
                serving |= {arm.name: system for arm in arms}
            await asyncio.gather(*(system.start() for system in dict.fromkeys(serving.values())))
            started = time.monotonic() - began
            for share in plan.shares(config, sitting):

                async def send(generate: load.Generate, share: Share = share) -> list[load.Sample]:
                    return await load.closed_loop(
                        generate,
                        texts,
                        concurrency=share.concurrency,
                        requests=share.requests,
                        warmup=share.warmup,
                        tokens=config.output_tokens,
                        first=share.first,
                    )

                try:
                    samples[share.arm.name][share.concurrency] += await serving[share.arm.name].measure(share, send)
                except BenchError as error:
                    if not share.arm.as_shipped:
                        raise
                    # That vLLM as it is shipped cannot be measured here is a result, no reason to measure nothing.
                    failed = f"{share.concurrency} at once: {error}"
                    break
    for arm in sitting.arms:
        row: dict[str, Any] = {
            "repeat": sitting.repeat,
            "arm": arm.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": results.commit(),
            "start_seconds": round(started, 1),
            "others_cores": round(quiet, 2),
            "failed": failed,
            "samples": {
                str(concurrency): [[s.key, round(s.ttft_ms, 3), round(s.tpot_ms, 4)] for s in found]
                for concurrency, found in sorted(samples[arm.name].items())
                if not failed
            },
        }
        work.append(row)
        say(f"repeat {sitting.repeat}: {arm.name}: {report.one_line(row)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGURATION, metavar="FILE", help="default: bench/path.yaml")
    parser.add_argument("--work", type=Path, default=WORK, metavar="FILE", help="finished runs; default: in results/")
    parser.add_argument("--slice-minutes", type=float, metavar="M", help="start nothing that would not end in time")
    parser.add_argument("--wait-minutes", type=float, default=10.0, metavar="M", help="for a quiet machine; default 10")
    parser.add_argument("--report", action="store_true", help="write the result of what is finished; runs nothing")
    parser.add_argument("--list", action="store_true", help="what is left to do, in order; runs nothing")
    parser.add_argument("--quick", action="store_true", help="two minutes, for tests: its figures may not be quoted")
    given = parser.parse_args()
    return results.as_a_script(lambda: benchmark(given))


def benchmark(given: argparse.Namespace) -> int:
    began = time.monotonic()
    config = plan.load(given.config)
    if given.quick:
        with tempfile.TemporaryDirectory(prefix="streamserve-bench-") as name:
            config = plan.shortened(config)
            work = WorkFile(Path(name) / "quick.jsonl", config.fingerprint)
            for sitting in plan.schedule(config, set()):
                uvloop.run(run_sitting(sitting, config, work, 0.0))
            print(report.table(report.result(config, work.read())))
        return 0
    work = WorkFile(given.work, config.fingerprint)
    rows = work.read()
    sittings = plan.schedule(config, {(row["repeat"], row["arm"]) for row in rows})
    if given.list:
        for sitting in sittings:
            print(f"repeat {sitting.repeat}: {sitting.name}")
        return 0
    for number, sitting in enumerate(sittings if not given.report else ()):
        minutes = (time.monotonic() - began) / 60
        if given.slice_minutes is not None and minutes + SITTING_MINUTES > given.slice_minutes:
            say(f"the slice is over: {len(sittings) - number} of {len(sittings)} starts are left; run the same again")
            return 3
        uvloop.run(run_sitting(sitting, config, work, quiet_machine(given.wait_minutes)))
    rows = work.read()
    if not rows:
        raise BenchError("nothing is measured yet; run without --report first")
    document = report.result(config, rows)
    say(f"written: {results.write('path', document).relative_to(results.ROOT)}")
    report.write_page()
    print(report.table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
