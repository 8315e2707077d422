"""A lane whose drafts begin to be refused is predicted slower, gets less, and `explain` says why.

Both lanes draft 4 tokens at every step and, to begin with, every draft holds. Then the simulator's control file tells
one decode worker to refuse them all. Nothing else changes: what the router learns, it learns from the acceptance in
the worker's signals.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time

import pytest
from tests.support import calls
from tests.support.calls import request
from tests.support.processes import LocalFleet
from tests.support.steady_load import Sent, SteadyLoad, share

from streamserve.v1 import admin_pb2

SPOILED, OTHER = "lane-1", "lane-0"
WORKLOAD = "spoiled"
MAX_TOKENS = 24
PER_SECOND = 20.0
SOUND_SECONDS, NOTICE_SECONDS, SPOILED_SECONDS = 1.2, 2.0, 1.5
SHARE = 0.9


def explained(fleet: LocalFleet) -> dict[str, tuple[admin_pb2.Candidate, dict[str, float]]]:
    """Lane -> its candidate and the values of its terms, for a request like those of the load."""
    answer = calls.explain(fleet.grpc, request("which", workload=WORKLOAD, max_tokens=MAX_TOKENS, ignore_eos=True))
    return {row.lane: (row, {term.name: term.value for term in row.terms}) for row in answer.candidates}


async def load(fleet: LocalFleet, *stages: float) -> list[list[Sent]]:
    """What was sent in each of these stretches of seconds."""
    edges = [time.monotonic()]
    async with SteadyLoad(fleet.grpc, per_second=PER_SECOND, max_tokens=MAX_TOKENS, workload=WORKLOAD) as steady:
        for seconds in stages:
            await asyncio.sleep(seconds)
            edges.append(time.monotonic())
    return [steady.between(start, end) for start, end in itertools.pairwise(edges)]


async def test_a_lane_whose_drafts_are_refused_is_predicted_slower_and_left(fleet: LocalFleet) -> None:
    (sound,) = await load(fleet, SOUND_SECONDS)
    before = explained(fleet)
    assert 0.2 <= share(SPOILED, sound) <= 0.8, "the lanes were not alike to begin with"
    assert before[SPOILED][1]["acceptance"] > 0.95
    assert before[SPOILED][1]["predicted_tpot"] == pytest.approx(before[OTHER][1]["predicted_tpot"], rel=0.1)

    fleet.fault(f"{SPOILED}-decode-0", acceptance=[0.0])
    noticing, left = await load(fleet, NOTICE_SECONDS, SPOILED_SECONDS)
    after = explained(fleet)
    spoiled, terms = after[SPOILED]
    print(
        f"share of {SPOILED} {share(SPOILED, sound):.2f}, while noticed {share(SPOILED, noticing):.2f}, "
        f"then {share(SPOILED, left):.2f}; {spoiled.reason}"
    )
    assert 1 - share(SPOILED, left) >= SHARE
    assert terms["acceptance"] < before[SPOILED][1]["acceptance"] - 0.1
    assert terms["emitted_per_step"] < 0.8 * before[SPOILED][1]["emitted_per_step"]
    assert terms["predicted_tpot"] > 1.25 * before[SPOILED][1]["predicted_tpot"]
    assert after[OTHER][1]["predicted_tpot"] == pytest.approx(before[OTHER][1]["predicted_tpot"], rel=0.1)
    assert after[OTHER][0].reason == "the least cost"
    for word in ("dearer, most of it decode_step", "predicted_tpot", "acceptance", "against 100%"):
        assert word in spoiled.reason
    _the_command_shows_the_same(fleet, spoiled)


def _the_command_shows_the_same(fleet: LocalFleet, spoiled: admin_pb2.Candidate) -> None:
    command = [sys.executable, "-m", "streamserve.cli.main", "explain", "--server", fleet.grpc, "--workload", WORKLOAD]
    as_json, as_table = [
        subprocess.run(
            [*command, "--max-tokens", str(MAX_TOKENS), *more], check=True, capture_output=True, text=True, timeout=30
        ).stdout
        for more in (("which", "--json"), ("which",))
    ]
    (row,) = [row for row in json.loads(as_json)["candidates"] if row["lane"] == SPOILED]
    assert "acceptance" in row["reason"]
    assert {"acceptance", "emitted_per_step", "predicted_tpot"} <= {term["name"] for term in row["terms"]}
    for word in (f"{OTHER} is chosen", "acceptance", "predicted_tpot", f"{spoiled.decode_worker}: ", "dearer"):
        assert word in as_table
