"""Questions to single workers and routers over gRPC: have you applied it, and finish what you run."""

from __future__ import annotations

from typing import Final

import grpc

from streamserve.contract.signals import Flags
from streamserve.operator.edge.redis_link import signals_of
from streamserve.operator.observe import Echo
from streamserve.runtime import grpc as transport
from streamserve.runtime.errors import SetupError
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

ASK_SECONDS: Final = 1.0
_FAILED: Final = (grpc.aio.AioRpcError, SetupError)


class Peers:
    """A channel for each question: they are rare, and a pod's address may be another pod's the next time."""

    def __init__(self, tls: TlsFiles | None) -> None:
        self._tls = tls

    async def worker(self, address: str, pair_uid: str, worker_id: str) -> Echo | None:
        """What a worker has applied; None where it does not answer, or another one does: addresses are reused."""
        try:
            async with transport.channel(address, self._tls) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                state = await stub.GetState(worker_pb2.GetStateRequest(), timeout=ASK_SECONDS)
        except _FAILED:
            return None
        if (state.worker.pair_uid, state.worker.id) != (pair_uid, worker_id):
            return None
        said = signals_of(state.signals)
        fallback = said is not None and bool(said.flags & Flags.SPECULATION_FALLBACK)
        return Echo(state.config_generation, state.config_step, state.config_error, fallback)

    async def router(self, address: str, pair_uid: str) -> Echo | None:
        """The same of a router."""
        try:
            async with transport.channel(address, self._tls) as channel:
                stub = admin_pb2_grpc.AdminServiceStub(channel)
                seen = await stub.GetConfig(admin_pb2.GetConfigRequest(), timeout=ASK_SECONDS)
        except _FAILED:
            return None
        return Echo(seen.generation, seen.step, seen.last_error) if seen.pair_uid == pair_uid else None

    async def drain(self, address: str, pair_uid: str, worker_id: str, seconds: float) -> int | None:
        """Requests that a worker still runs after at most `seconds`; None where it does not answer, or another one
        does, which is left alone."""
        try:
            async with transport.channel(address, self._tls) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                state = await stub.GetState(worker_pb2.GetStateRequest(), timeout=ASK_SECONDS)
                if (state.worker.pair_uid, state.worker.id) != (pair_uid, worker_id):
                    return None
                answer = await stub.Drain(worker_pb2.DrainRequest(), timeout=seconds)
        except _FAILED:
            return None
        return int(answer.unfinished_requests)
