"""`streamserve up`: one StreamPair on this machine, as the operator would run it in a cluster.

edits.py       pure: an edit of the file → what it takes, or why it is refused
revision.py    pure: the spec's cold part → a short hash
commands.py    pure: command lines and environments of the processes
run_folder.py  the folder of a run: who has it, when it goes
preflight.py   what would fail later, refused now
app.py         the edge: the command line and the file, refusals, the folder of a run
running.py     what runs: started, planned, told, stopped
taking.py      edits: judged, taken over or refused
files.py       files for others, written again when the machine refused them
supervisor.py last_words.py lanes.py redis.py push.py view.py watch.py drain.py status.py guard.py reaper.py
               what running.py is made of
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from streamserve.cli.errors import Refused

DEFAULT_GRPC: Final = "127.0.0.1:50051"
DEFAULT_HTTP: Final = "127.0.0.1:8000"
DEFAULT_METRICS: Final = "127.0.0.1:0"
EPILOG: Final = """\
An edit of FILE is taken over while everything runs. A hot field (depth bounds, SLOs, routing, admission) is applied
to what runs; lanes and replicas are added or drained; a cold field (engine flags, draft model, maxDepth) replaces lane
after lane; a fixed field is refused. A file with a mistake changes nothing: the problems are printed, the last good
one stays.

examples:
  streamserve up -f examples/local/streampair.yaml
  streamserve up -f examples/local/streampair.yaml --engine Simulator --lanes 3
  streamserve up -f streampair.yaml --grpc 127.0.0.1:0 --http 127.0.0.1:0 --ready-file ready.json

Ctrl-C stops everything within 30 s, a second Ctrl-C at once. Port 0 takes any free port; the ready file says which.

exit status:
  0 stopped as asked, 1 a part of it failed, 2 refused: each problem on a line of its own"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "up",
        help="run a StreamPair on this machine until Ctrl-C",
        description="Run a StreamPair on this machine: Redis, a router, and a prefill and a decode worker per lane.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="the StreamPair, YAML")
    parser.add_argument(
        "--grpc", default=DEFAULT_GRPC, metavar="ADDR", help=f"the router's gRPC address (default {DEFAULT_GRPC})"
    )
    parser.add_argument(
        "--http", default=DEFAULT_HTTP, metavar="ADDR", help=f"the OpenAI API's address (default {DEFAULT_HTTP})"
    )
    parser.add_argument(
        "--metrics",
        default=DEFAULT_METRICS,
        metavar="ADDR",
        help="/metrics /healthz /readyz of `up` itself (default: any free port; the ready file names it)",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="use this Redis (redis://[:password@]host:port/0), start none of our own"
    )
    parser.add_argument("--engine", choices=("Vllm", "Simulator"), help="in place of spec.engine.kind")
    parser.add_argument(
        "--lanes", type=int, metavar="N", help="in place of spec.lanes, 0 to 256, until the file's value is edited"
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="JSON with grpc, http, metrics and redis as host:port, written once every lane takes traffic",
    )


def run(args: argparse.Namespace) -> int:
    if sys.platform not in ("linux", "darwin"):
        raise Refused(f"`up` needs Linux (or macOS with --engine Simulator); this is {sys.platform}")
    # We fork only to exec; gRPC's fork handlers would write a line to stderr each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from streamserve.cli.up.app import Options, serve

    return serve(
        Options(
            file=args.file,
            grpc=args.grpc,
            http=args.http,
            metrics=args.metrics,
            redis=args.redis,
            engine=args.engine,
            lanes=args.lanes,
            ready_file=args.ready_file,
        )
    )
