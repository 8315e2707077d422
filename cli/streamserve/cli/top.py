"""`streamserve top`: lanes and workers as the router sees them, once a second."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from streamserve.cli import client
from streamserve.cli.errors import Refused

if TYPE_CHECKING:
    import grpc

    from streamserve.cli.fleet_view import Fleet, WorkerRow

TIMEOUT_SECONDS: Final = 5.0
COLUMNS: Final = (
    "lane",
    "worker",
    "state",
    "running",
    "waiting",
    "KV used",
    "depth",
    "accepted",
    "tokens/step",
    "tokens/s",
    "age",
    "config",
)

EPILOG: Final = """\
columns:
  running, waiting    requests in the engine's batch and before it
  KV used             part of the engine's KV cache that is in use
  depth               speculation depth of the last step; an idle worker shows its last one
  accepted            part of all draft tokens so far that were accepted
  tokens/step         mean tokens that one request gets from a step
  tokens/s            predicted from the step time at this batch; 0 when nothing runs
  age                 of the worker's last signals
  config              generation of the settings in force

examples:
  streamserve top
  streamserve top --once | grep -v Ready
  streamserve top --json --interval 5 | jq -c '.lanes[] | [.name, .state]'

In a pipe one table is printed, as with --once."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "top",
        help="watch lanes and workers",
        description="Watch lanes and workers as the router sees them. Ctrl-C ends it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    client.add_server_option(parser)
    parser.add_argument("--once", action="store_true", help="print one table and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON object per refresh")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between refreshes, at least 0.1 (default 1)"
    )


def run(args: argparse.Namespace) -> int:
    if not args.interval >= 0.1:
        raise Refused("--interval must be at least 0.1 s")
    return client.run_with_channel(args, lambda channel: _watch(channel, args))


async def _watch(channel: grpc.aio.Channel, args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    if args.json:
        while True:
            print(json.dumps((await _fleet(channel)).as_object()), flush=True)
            if args.once:
                return 0
            await asyncio.sleep(args.interval)
    if args.once or not sys.stdout.isatty():
        console.print(table(await _fleet(channel)))
        return 0
    with Live(table(await _fleet(channel)), console=console, auto_refresh=False, screen=False) as live:
        while True:
            await asyncio.sleep(args.interval)
            live.update(table(await _fleet(channel)), refresh=True)


async def _fleet(channel: grpc.aio.Channel) -> Fleet:
    from streamserve.cli import fleet_view
    from streamserve.v1 import admin_pb2, admin_pb2_grpc

    stub = admin_pb2_grpc.AdminServiceStub(channel)
    return fleet_view.read(await stub.GetFleet(admin_pb2.GetFleetRequest(), timeout=TIMEOUT_SECONDS))


def table(fleet: Fleet) -> Any:
    from rich.table import Table
    from rich.text import Text

    redis = "" if fleet.redis_connected else " · Redis is away"
    out = Table(
        title=f"{fleet.running_requests} running · {fleet.queued_requests} queued · "
        f"≈{fleet.tokens_per_second:.0f} tokens/s{redis}",
        title_justify="left",
        title_style="",
        show_edge=False,
        header_style="bold",
    )
    for column in COLUMNS:
        out.add_column(column, justify="left" if column in ("lane", "worker", "state") else "right")
    for lane in fleet.lanes:
        state = lane.state + (f": {lane.reason}" if lane.reason else "")
        for position, worker in enumerate(lane.workers):
            health = "" if worker.health in ("ok", "") else f" ({worker.health})"
            cells = (
                lane.name if position == 0 else "",
                worker.id.removeprefix(f"{lane.name}-") + health,
                state if position == 0 else "",
                *figures(worker),
            )
            out.add_row(
                *map(Text, cells),  # a plain string would be read as markup, [brackets] and all
                end_section=position == len(lane.workers) - 1,
            )
    return out


def figures(worker: WorkerRow) -> tuple[str, ...]:
    """The cells from `running` on; – where nothing is known."""
    seen = worker.signals
    if seen is None:
        return ("–",) * 7 + (f"{worker.signal_age_ms} ms", "–")
    decode = worker.role == "decode"
    used = 100 * seen.kv_blocks_used / seen.kv_blocks_total if seen.kv_blocks_total else 0.0
    accepted = f"{100 * seen.accepted_tokens / seen.drafted_tokens:.0f} %" if seen.drafted_tokens else "–"
    generation = f"{seen.config_generation}" + (f".{seen.config_step}" if seen.config_step else "")
    return (
        str(seen.running_requests),
        str(seen.waiting_requests),
        f"{used:.0f} %",
        str(seen.depth) if decode else "–",
        accepted if decode else "–",
        f"{seen.mean_emitted_tokens_per_step:.2f}" if decode else "–",
        f"{worker.tokens_per_second:.0f}" if decode else "–",
        f"{worker.signal_age_ms} ms",
        generation,
    )
