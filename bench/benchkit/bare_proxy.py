"""The least that a streaming gRPC proxy in Python can do: bytes in, bytes out, one call forwarded per call.

    python bench/benchkit/bare_proxy.py --backend HOST:PORT --ready-file PATH

Forwards WorkerService/Decode to the backend without looking at anything. Same library, same options and the same
event loop (uvloop) as the router, so that what the router costs more is the router's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import uvloop

from streamserve.runtime.grpc import CHANNEL_OPTIONS, SERVER_OPTIONS

METHOD = "/streamserve.v1.WorkerService/Decode"


async def serve(backend: str, ready_file: Path) -> None:
    async with grpc.aio.insecure_channel(backend, options=CHANNEL_OPTIONS) as channel:
        upstream = channel.unary_stream(METHOD)

        async def decode(data: bytes, context: Any) -> None:
            call = upstream(data)
            while (message := await call.read()) is not grpc.aio.EOF:
                await context.write(message)

        service, _, method = METHOD.strip("/").partition("/")
        server = grpc.aio.server(options=SERVER_OPTIONS)
        handler = grpc.unary_stream_rpc_method_handler(decode)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        fresh = ready_file.with_suffix(".new")
        fresh.write_text(f'{{"grpc": "127.0.0.1:{port}"}}')
        fresh.replace(ready_file)
        stop = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        parent = os.getppid()
        while not stop.is_set() and os.getppid() == parent:
            try:
                await asyncio.wait_for(stop.wait(), 0.5)
            except TimeoutError:
                continue
        await server.stop(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True, metavar="HOST:PORT", help="a decode worker")
    parser.add_argument("--ready-file", required=True, type=Path, metavar="PATH", help="written once it serves")
    given = parser.parse_args()
    uvloop.run(serve(given.backend, given.ready_file))


if __name__ == "__main__":
    main()
