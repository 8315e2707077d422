"""The worker's command line: parsed, checked, and refused with a sentence that says what to do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import MAX_DEPTH
from streamserve.runtime import redis_url
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import split_address
from streamserve.runtime.tls import TlsFiles, from_arguments
from streamserve.worker.decode_many import SLOW_READER_SECONDS

REDIS_VARIABLE = "STREAMSERVE_REDIS_URL"
DEFAULT_DRAIN_SECONDS = 20.0
METHODS = ("None", "DraftModel", "Eagle", "Eagle3", "Mtp", "Ngram", "Suffix", "Medusa")
_DESCRIPTION = """\
One worker of a lane: a prefill worker computes prompts and holds their KV cache, a decode worker pulls it and
streams tokens. It serves streamserve.v1.WorkerService to routers, publishes its signals to Redis and takes its
runtime configuration from a file and from Redis. `streamserve up` and the operator start it.
"""
_EPILOG = """\
SIGTERM drains: new requests are refused, running ones finish, at most --drain-seconds. Exit status: 0 after a
graceful stop, 1 when the engine died, 2 when the worker could not start as asked, 3 when the engine does not take its
arguments and another start would end the same way.

examples:
  streamserve-worker --role decode --engine Simulator --id lane-0-decode-0 --lane lane-0 --revision r1 \\
      --namespace local --pair demo --pair-uid 1 --config config.json
  streamserve-worker --role prefill --model examples/models/tiny-target --engine-args '{"max-num-seqs": "16"}' \\
      --id lane-0-prefill-0 --lane lane-0 --revision r1 --namespace local --pair demo --pair-uid 1 \\
      --config config.json --ready-file ready.json --record calibration.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    role: str
    engine: str
    id: str
    lane: str
    revision: str
    keyspace: Keyspace
    pair_uid: str
    redis_url: str | None
    grpc: str
    advertise: str | None
    metrics: str
    model: str
    draft: str | None
    method: str
    max_depth: int
    engine_args: Mapping[str, str]
    config: Path
    ready_file: Path | None
    die_with_parent: bool
    nixl: tuple[str, int]
    calibration: Path | None
    record: Path | None
    tls: TlsFiles | None
    drain_seconds: float
    slow_reader_seconds: float
    log_level: str


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="streamserve-worker",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    who = p.add_argument_group("who it is")
    who.add_argument("--id", required=True, metavar="ID", help="unique in the pair, for example lane-0-prefill-0")
    who.add_argument("--lane", required=True, metavar="LANE", help="for example lane-0")
    who.add_argument("--revision", required=True, metavar="R", help="revision of the lane's template")
    who.add_argument("--namespace", required=True, metavar="NS", help="`local` in local mode")
    who.add_argument("--pair", required=True, metavar="PAIR", help="name of the StreamPair")
    who.add_argument("--pair-uid", required=True, metavar="UID", help="its uid: other pairs' settings are ignored")

    engine = p.add_argument_group("the engine")
    add_engine_options(engine)
    engine.add_argument(
        "--nixl", default="127.0.0.1:0", metavar="HOST:PORT", help="where KV is handed over; default: 127.0.0.1:0"
    )
    engine.add_argument(
        "--calibration", type=Path, metavar="FILE", help="what the simulator replays; default: built in"
    )
    engine.add_argument("--record", type=Path, metavar="FILE", help="write a calibration of this engine there")

    where = p.add_argument_group("where it talks (port 0: any free one; the ready file says which)")
    where.add_argument(
        "--grpc",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="WorkerService, health, reflection; default: 127.0.0.1:0",
    )
    where.add_argument(
        "--advertise", metavar="HOST:PORT", help="address that routers shall use; default: the bound one"
    )
    where.add_argument(
        "--metrics", default="127.0.0.1:0", metavar="HOST:PORT", help="/metrics /healthz /readyz; default: 127.0.0.1:0"
    )
    where.add_argument("--redis", metavar="URL", help=f"default: ${REDIS_VARIABLE}; without either, no signals")
    where.add_argument("--config", type=Path, required=True, metavar="FILE", help="runtime configuration, watched")
    where.add_argument("--ready-file", type=Path, metavar="PATH", help='written once it serves: {"grpc", "metrics"}')
    where.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="authority that signs the peers, PEM; mutual TLS takes all three files or none",
    )
    where.add_argument("--tls-certificate", type=Path, metavar="FILE", help="our certificate, PEM")
    where.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")

    life = p.add_argument_group("its life")
    life.add_argument("--die-with-parent", action="store_true", help="end when the process that started it ends")
    life.add_argument(
        "--drain-seconds",
        type=float,
        default=DEFAULT_DRAIN_SECONDS,
        metavar="S",
        help=f"longest drain after SIGTERM, in seconds; default: {DEFAULT_DRAIN_SECONDS:g}",
    )
    life.add_argument(
        "--slow-reader-seconds",
        type=float,
        default=SLOW_READER_SECONDS,
        metavar="S",
        help=f"a stream of which nothing is read for so many seconds is ended; default: {SLOW_READER_SECONDS:g}",
    )
    life.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="least level that is logged; default: INFO",
    )
    return p


def add_engine_options(engine: argparse._ActionsContainer) -> None:
    """What decides which engine it is; `contract.launch.engine_arguments` writes these."""
    engine.add_argument("--role", required=True, choices=("prefill", "decode"), help="its part of the lane")
    engine.add_argument("--engine", default="Vllm", choices=("Vllm", "Simulator"), help="default: Vllm")
    engine.add_argument("--model", default="", metavar="M", help="folder or hub id of the model (Vllm needs it)")
    engine.add_argument("--draft", metavar="D", help="folder or hub id of the draft model")
    engine.add_argument(
        "--method", choices=METHODS, help="how drafts are made; default: None, for the simulator DraftModel"
    )
    engine.add_argument(
        "--max-depth", type=int, default=6, metavar="N", help=f"deepest draft to build for, 1..{MAX_DEPTH}; default: 6"
    )
    engine.add_argument(
        "--engine-args",
        default="{}",
        metavar="JSON",
        help='engine flags without dashes, as one JSON object: {"max-model-len": "4096"}; default: none',
    )


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Options:
    """Raises SetupError for values that cannot work; argparse itself ends the process for unknown flags."""
    given = parser().parse_args(arguments)
    try:
        keyspace = Keyspace(given.namespace, given.pair)
    except ValueError as error:
        raise SetupError(f"--namespace or --pair: {error}") from None
    if not 1 <= given.max_depth <= MAX_DEPTH:
        raise SetupError(f"--max-depth is {given.max_depth}; use 1 to {MAX_DEPTH}")
    if not 0 <= given.drain_seconds <= 3_600:
        raise SetupError(f"--drain-seconds is {given.drain_seconds:g}; use 0 to 3600")
    if not 0 < given.slow_reader_seconds <= 3_600:
        raise SetupError(f"--slow-reader-seconds is {given.slow_reader_seconds:g}; use more than 0, at most 3600")
    if given.calibration and given.engine != "Simulator":
        raise SetupError("--calibration is for --engine Simulator; a real engine measures itself")
    if given.engine == "Vllm":
        _check_model(given.model, given.draft)
    for address in (given.grpc, given.metrics, given.advertise):
        if address is not None:
            split_address(address)
    return Options(
        role=given.role,
        engine=given.engine,
        id=given.id,
        lane=given.lane,
        revision=given.revision,
        keyspace=keyspace,
        pair_uid=given.pair_uid,
        redis_url=redis_url.chosen(given.redis, environment, REDIS_VARIABLE),
        grpc=given.grpc,
        advertise=given.advertise,
        metrics=given.metrics,
        model=given.model,
        draft=given.draft,
        method=given.method or ("DraftModel" if given.engine == "Simulator" else "None"),
        max_depth=given.max_depth,
        engine_args=engine_args(given.engine_args),
        config=given.config,
        ready_file=given.ready_file,
        die_with_parent=given.die_with_parent,
        nixl=split_address(given.nixl),
        calibration=given.calibration,
        record=given.record,
        tls=from_arguments(given.tls_ca, given.tls_certificate, given.tls_key),
        drain_seconds=given.drain_seconds,
        slow_reader_seconds=given.slow_reader_seconds,
        log_level=given.log_level,
    )


def _check_model(model: str, draft: str | None) -> None:
    if not model:
        raise SetupError("--engine Vllm needs --model: a folder with config.json and weights, or a hub id")
    for flag, name in (("--model", model), ("--draft", draft)):
        if name and name.startswith(("/", ".")) and not (Path(name) / "config.json").is_file():
            raise SetupError(f"{flag} {name} is no model folder: there is no config.json in it; check the path")


def engine_args(text: str) -> dict[str, str]:
    """The JSON of --engine-args, values as text. Raises SetupError."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise SetupError(f'--engine-args is no JSON ({error}); write for example {{"max-model-len": "4096"}}') from None
    if not isinstance(values, dict):
        raise SetupError("--engine-args is no JSON object; write flag names and values")
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
