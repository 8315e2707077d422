"""How long FlowGuard's pick takes with 2, 16 and 128 (prefill, decode) pairs to choose from.

    python bench/pick_cost.py [--quick]

Calls `flowguard.pick.pick` on a fleet view with fresh signals of every worker, each lane loaded a little differently,
with the default configuration (policy FlowGuard). Nothing else runs in the process: no Redis, no gRPC.
Time is CPU time of the thread, so what others do on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from benchkit import results, stats
from benchkit.results import say

from streamserve.contract.identity import fingerprint
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.contract.signals import Role, WorkerSignals
from streamserve.router.flowguard.pick import Cursor, pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, KvGeometry, LaneState, LaneView, WorkerView

UID = "bench"
SIZES = (2, 16, 128)


def worker(lane: int, role: Role, now: float, rng: random.Random) -> WorkerView:
    signals = WorkerSignals(
        role=role,
        boot_id=1,
        epoch=1,
        uid_fingerprint=fingerprint(UID),
        max_running_requests=64,
        running_requests=rng.randrange(32),
        waiting_prompt_tokens=rng.randrange(2_000) if role is Role.PREFILL else 0,
        kv_blocks_total=10_000,
        kv_blocks_used=rng.randrange(5_000),
        prefill_tokens_per_second=10_000.0 if role is Role.PREFILL else 0.0,
        step_base_seconds=0.0 if role is Role.PREFILL else 0.01,
        step_per_request_seconds=0.0 if role is Role.PREFILL else 0.001,
        mean_emitted_tokens_per_step=0.0 if role is Role.PREFILL else 1.0 + rng.random(),
        transfer_bytes_per_second=0.0 if role is Role.PREFILL else 1e9,
    )
    return WorkerView(
        id=f"lane-{lane}-{role.name.lower()}-0",
        role=role,
        lane=f"lane-{lane}",
        revision="r1",
        address="127.0.0.1:1",
        pair_uid=UID,
        boot_id=1,
        signals=signals,
        seen_at_seconds=now,
        kv=KvGeometry(128, 65_536),
        max_model_tokens=100_000,
    )


def view(pairs: int, rng: random.Random) -> FleetView:
    now = 1_000.0
    lanes = tuple(
        LaneView(
            name=f"lane-{n}",
            revision="r1",
            state=LaneState.READY,
            prefill=(prefill := worker(n, Role.PREFILL, now, rng),),
            decode=(decode := worker(n, Role.DECODE, now, rng),),
            proven=frozenset({(prefill.id, decode.id)}),
        )
        for n in range(pairs)
    )
    return FleetView(lanes=lanes, now_seconds=now, pair_uid=UID)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=2_000, metavar="N", help="timed picks per size (default 2000)")
    parser.add_argument("--seed", type=int, default=20261121, metavar="N")
    parser.add_argument("--no-write", action="store_true", help="print the result only")
    parser.add_argument("--quick", action="store_true", help="seconds, for tests: its figures may not be quoted")
    given = parser.parse_args()
    picks = 20 if given.quick else given.picks
    config = RuntimeConfig(id=ConfigId(uid=UID, generation=1))
    sizes = []
    for pairs in SIZES:
        rng = random.Random(given.seed)
        fleet, cursor = view(pairs, rng), Cursor()
        times = []
        for number in range(picks + picks // 10):
            request = RouteRequest(prompt_tokens=100 + number % 500, max_tokens=256)
            began = time.thread_time_ns()
            pick(request, fleet, config, rng, cursor)
            times.append((time.thread_time_ns() - began) / 1e3)
        kept = times[picks // 10 :]
        row = {"pairs": pairs, "median_us": stats.quantile(kept, 0.5), "p99_us": stats.quantile(kept, 0.99)}
        sizes.append(row)
        say(f"{pairs} pairs: median {row['median_us']:.1f} us, p99 {row['p99_us']:.1f} us")
    document = {**results.stamp(), "heading": "time of one pick", "quick": given.quick, "picks": picks, "sizes": sizes}
    print(json.dumps({"sizes": sizes}, indent=1))
    if not given.quick and not given.no_write:
        say(f"written: {results.write('pick-cost', document).relative_to(results.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
