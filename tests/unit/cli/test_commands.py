"""What a process is told fits what `up` does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamserve.cli.up import commands, lanes, running
from streamserve.cli.up.commands import Command, Site
from streamserve.contract.lanes import Slot

SITE = Site(pair="p", uid="u", run_dir=Path("/run"), redis_url="redis://h", environment={})


def drain_seconds(command: Command) -> float:
    return float(command.argv[command.argv.index("--drain-seconds") + 1])


def test_a_router_cuts_what_it_runs_before_it_is_killed() -> None:
    assert drain_seconds(commands.router(SITE, "127.0.0.1:1", "127.0.0.1:2")) + 4 < running.ROUTER_STOP_SECONDS


def test_a_worker_ends_its_engine_before_it_is_killed(make_pair: Any) -> None:
    assert drain_seconds(commands.worker(SITE, make_pair(), 0, Slot("decode", 0), "r")) + 10 <= lanes.STOP_SECONDS


def test_the_whole_end_takes_less_than_30_seconds() -> None:
    assert running.ROUTER_STOP_SECONDS + lanes.STOP_SECONDS + running.REDIS_STOP_SECONDS < 30
