"""Ask workers to finish what they run: prefills first, then decodes, which take what the prefills have handed over.

The router sees a draining worker in its signals and sends nothing new; a request that was on its way is refused and
tried elsewhere by the router.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import grpc

from streamserve.runtime import grpc as transport
from streamserve.v1 import worker_pb2, worker_pb2_grpc

# Between the last prefill and the drain of the decodes: the hand-over of a prompt takes a round trip by the router.
HANDOVER_SECONDS: Final = 0.5


async def drain(prefills: Iterable[str], decodes: Iterable[str], timeout_seconds: float) -> int:
    """Returns the number of requests that were still running when the time was over."""
    until = time.monotonic() + timeout_seconds
    left = await _all(prefills, until)
    await asyncio.sleep(min(HANDOVER_SECONDS, max(0.0, until - time.monotonic())))
    return left + await _all(decodes, until)


async def _all(addresses: Iterable[str], until: float) -> int:
    return sum(await asyncio.gather(*(_one(address, until) for address in addresses)))


async def _one(address: str, until: float) -> int:
    seconds = max(0.1, until - time.monotonic())
    channel = transport.channel(address)
    try:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        answer = await stub.Drain(worker_pb2.DrainRequest(), timeout=seconds)
        return int(answer.unfinished_requests)
    except grpc.aio.AioRpcError:
        return 0  # gone, or out of time: the stop that follows settles it
    finally:
        await channel.close(None)
