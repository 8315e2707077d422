"""The router's view of the fleet, asked four times a second: which lanes take traffic, and what their workers do."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc

from streamserve.cli import fleet_view
from streamserve.cli.fleet_view import Fleet
from streamserve.cli.up.supervisor import Child
from streamserve.runtime import grpc as transport
from streamserve.v1 import admin_pb2, admin_pb2_grpc

POLL_SECONDS: Final = 0.25
_RPC_SECONDS: Final = 2.0


class RouterView:
    """`fleet` is None while the router does not answer."""

    def __init__(self, router: Child) -> None:
        self._router = router
        self._fleet: Fleet | None = None
        self._channel: tuple[str, grpc.aio.Channel] | None = None

    @property
    def fleet(self) -> Fleet | None:
        return self._fleet if self._router.up else None

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if not self._router.up or "grpc" not in self._router.info:
                self._fleet = None
                continue
            try:
                stub = admin_pb2_grpc.AdminServiceStub(await self._connected(str(self._router.info["grpc"])))
                seen = fleet_view.read(await stub.GetFleet(admin_pb2.GetFleetRequest(), timeout=_RPC_SECONDS))
            except grpc.aio.AioRpcError:
                seen = None
            self._fleet = seen if self._router.up else None

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel[1].close(None)

    async def _connected(self, address: str) -> grpc.aio.Channel:
        if self._channel is None or self._channel[0] != address:
            await self.close()
            self._channel = (address, transport.channel(address))
        return self._channel[1]
