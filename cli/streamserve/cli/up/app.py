"""The edge of `up`: reads the command line and the file, refuses what cannot work, keeps a folder for the run.

What is started then belongs to running.py; edits of the file to taking.py.
"""

from __future__ import annotations

import asyncio
import signal
import uuid

from streamserve.cli.errors import Refused
from streamserve.cli.up import preflight, run_folder, watch
from streamserve.cli.up import redis as local_redis
from streamserve.cli.up.running import Options, Running
from streamserve.cli.up.status import Reporter
from streamserve.cli.up.taking import texts
from streamserve.contract import hot
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import StreamPair
from streamserve.runtime import logs, process

__all__ = ["Options", "serve"]


def serve(options: Options) -> int:
    """Until SIGINT or SIGTERM. Raises Refused before anything is started."""
    logs.configure("up", level="WARNING")
    return process.run(lambda stop: _serve(options, stop))


async def _serve(options: Options, stop: asyncio.Event) -> int:
    hurry = _listen_for_signals(stop)
    overrides = watch.Overrides(engine=options.engine, lanes=_checked_lanes(options.lanes))
    content, pair = _first_version(options, overrides)
    endpoint = None if options.redis is None else local_redis.external(options.redis)
    config = await _preflight(options, pair, endpoint)
    await asyncio.to_thread(run_folder.remove_dead)
    run_dir = run_folder.create()
    reporter = Reporter()
    running = Running(options, overrides, pair, config, run_dir, reporter)
    status = 1
    try:
        status = await running.run(endpoint, content, stop)
    finally:
        await running.stop(hurry)
        reporter.close()
        run_folder.remove(run_dir, keep_logs=status != 0)
        if status != 0:
            print(f"logs are kept in {run_dir / 'logs'}", flush=True)
    return status


def _listen_for_signals(stop: asyncio.Event) -> asyncio.Event:
    """The first signal asks for an orderly stop, a second one for a quick one."""
    hurry = asyncio.Event()

    def heard() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    signals = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal stops everything in order too, except under nohup.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    for signum in signals:
        asyncio.get_running_loop().add_signal_handler(signum, heard)
    return hurry


def _listening(options: Options) -> dict[str, str]:
    return {"--grpc": options.grpc, "--http": options.http, "--metrics": options.metrics}


def _checked_lanes(lanes: int | None) -> int | None:
    if lanes is not None and not 0 <= lanes <= 256:
        raise Refused(f"--lanes {lanes} is not between 0 and 256")
    return lanes


def _first_version(options: Options, overrides: watch.Overrides) -> tuple[bytes, StreamPair]:
    try:
        content = options.file.read_bytes()
    except OSError as error:
        raise Refused(f"{options.file} cannot be read ({error.strerror}): check the path after -f") from None
    version = watch.parse(content, options.file, overrides)
    if isinstance(version, list):
        raise Refused(*texts(options.file, version))
    return content, version


async def _preflight(options: Options, pair: StreamPair, endpoint: local_redis.Endpoint | None) -> RuntimeConfig:
    if options.ready_file is not None and not options.ready_file.absolute().parent.is_dir():
        raise Refused(f"--ready-file: there is no folder {options.ready_file.absolute().parent}: create it first")
    if options.ready_file is not None and options.ready_file.is_dir():
        raise Refused(f"--ready-file: {options.ready_file} is a folder: name a file in it")
    facts = await asyncio.to_thread(preflight.gather, pair, _listening(options))
    if found := preflight.problems(pair, facts):
        raise Refused(*found)
    if endpoint is not None:
        await local_redis.check(endpoint)
    try:
        return hot.runtime_config(pair, str(uuid.uuid4()), generation=1)
    except hot.HotError as error:
        raise Refused(f"{options.file}: {error}") from None
