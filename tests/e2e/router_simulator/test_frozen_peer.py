"""A peer whose machine hangs closes no connection: only pings tell. Costs the time that they take, twelve seconds.

Both sides are tried at once with an open stream on which nothing comes: a server that is frozen under our channel, and
a client that is frozen in front of our server. Without keepalive either would be believed for hours.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from streamserve.runtime.grpc import GrpcServer, channel

METHOD = "/test.Quiet/Open"
# A ping every 10 s, and 2 s for its answer; the rest is for a busy machine.
NOTICED_SECONDS = 18.0
HANG_SECONDS = 40.0

SERVER = """
import asyncio, grpc

async def main():
    async def opened(request, context):
        yield b"open"
        await asyncio.sleep(600)
    server = grpc.aio.server()
    rows = {"Open": grpc.unary_stream_rpc_method_handler(opened)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Quiet", rows),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.sleep(600)

asyncio.run(main())
"""
CLIENT = """
import grpc, sys
for _ in grpc.insecure_channel(sys.argv[1]).unary_stream("/test.Quiet/Open")(b""):
    print("open", flush=True)
"""


@asynccontextmanager
async def child(program: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process and the first line that it says. Killed at the end, frozen or not."""
    command = [sys.executable, "-c", program, *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), 30)
        yield process, said.decode().strip()
    finally:
        process.kill()
        await process.wait()


async def frozen_server() -> tuple[float, grpc.StatusCode]:
    """Seconds until a call on our channel ends, and with what."""
    async with child(SERVER) as (process, port), channel(f"127.0.0.1:{port}") as ours:
        call = ours.unary_stream(METHOD)(b"", timeout=HANG_SECONDS)
        assert await call.read() == b"open"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        code = await call.code()
        return time.monotonic() - began, code


async def frozen_client() -> float:
    """Seconds until our server cancels the call that it serves."""
    ended = asyncio.Event()

    async def opened(_: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"open"
            await asyncio.sleep(HANG_SECONDS)
        finally:
            ended.set()

    server = GrpcServer("127.0.0.1:0", services=["test.Quiet"])
    rows = {"Open": grpc.unary_stream_rpc_method_handler(opened)}
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Quiet", rows),))
    address = await server.start()
    try:
        async with child(CLIENT, address) as (process, said):
            assert said == "open"
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            await asyncio.wait_for(ended.wait(), HANG_SECONDS + 5)
            return time.monotonic() - began
    finally:
        await server.stop(0)


async def test_a_frozen_peer_is_noticed_by_its_silence_on_both_sides() -> None:
    (seconds, code), served = await asyncio.gather(frozen_server(), frozen_client())
    print(f"channel: {seconds:.1f} s, server: {served:.1f} s")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert seconds <= NOTICED_SECONDS
    assert served <= NOTICED_SECONDS
