"""The simulator's KV cache: a bounded pool of blocks, and the hand-off of a prompt's blocks to another process.

A prefill engine holds a prompt's blocks until a decode engine has pulled them or the lease ends. The hand-off is a
TCP connection on loopback, one line of JSON each way:

    decode -> prefill   {"pull": request id}       held? then the transfer's time passes on the decode side
    prefill -> decode   {"blocks": n} or {"error": why}
    decode -> prefill   {"done": request id}       the prefill engine frees the blocks
    prefill -> decode   {"freed": true}

A connection that breaks before the last line is a transfer that failed, as when the prefill process was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from streamserve.contract.errors import TransferFailed
from streamserve.runtime.errors import AddressInUse

LEASE_SECONDS = 30.0
EXCHANGE_SECONDS = 5.0
_LINE_BYTES = 4_096
# Of a connection or what came over it. RuntimeError: uvloop's, of a transport that is closed already.
_BROKEN = (
    OSError,
    RuntimeError,
    TimeoutError,
    ValueError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
)


class BlockPool:
    """Counts blocks. `take` refuses rather than overdraw."""

    __slots__ = ("total", "used")

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def take(self, blocks: int) -> bool:
        if self.used + blocks > self.total:
            return False
        self.used += blocks
        return True

    def give(self, blocks: int) -> None:
        if blocks > self.used:
            raise AssertionError(f"{blocks} blocks given back of {self.used} taken")
        self.used -= blocks


@dataclass(frozen=True, slots=True)
class Handle:
    """What the decode engine needs to pull: JSON in `kv_handle`, opaque to everyone between."""

    worker_id: str
    request_id: str
    host: str
    port: int
    tokens: int
    blocks: int
    bytes_per_block: int

    def to_bytes(self) -> bytes:
        return json.dumps({"engine": "Simulator", **asdict(self)}).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Handle:
        """Raises TransferFailed for a handle that no simulator wrote."""
        try:
            fields = json.loads(data)
            if fields.pop("engine") != "Simulator":
                raise ValueError("it is another engine's")
            handle = Handle(**fields)
            for number in (handle.port, handle.tokens, handle.blocks, handle.bytes_per_block):
                if not isinstance(number, int):
                    raise TypeError("no number where one belongs")
            return handle
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TransferFailed(f"the KV handle is not one of the simulator's: {error}") from None


class HandOff:
    """The prefill side: which prompts are held, and the socket that decode engines come to."""

    def __init__(self, on_freed: Callable[[str], None]) -> None:
        self._on_freed = on_freed
        self._held: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._server: asyncio.Server | None = None
        self.address = ("127.0.0.1", 0)

    def __len__(self) -> int:
        return len(self._held)

    async def start(self, host: str, port: int) -> None:
        """Listen for decode engines; port 0 takes any free one. Raises AddressInUse."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_LINE_BYTES)
        except OSError:
            raise AddressInUse(f"{host}:{port}") from None
        self.address = (host, self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        for request_id in list(self._held):
            self.free(request_id)
        if self._server is not None:
            self._server.close()
            self._server = None

    def hold(self, request_id: str, blocks: int, lease_seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(lease_seconds, self.free, request_id)
        self._held[request_id] = (blocks, timer)

    def free(self, request_id: str) -> bool:
        """End a hold: pulled, aborted or past its lease. False when there is none."""
        held = self._held.pop(request_id, None)
        if held is None:
            return False
        held[1].cancel()
        self._on_freed(request_id)
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_BROKEN):
            async with asyncio.timeout(LEASE_SECONDS):
                ask = await _read(reader)
                held = self._held.get(str(ask.get("pull")))
                if held is None:
                    await _write(writer, {"error": "it holds no KV of this request (aborted, or past its lease)"})
                    return
                await _write(writer, {"blocks": held[0]})
                done = await _read(reader)
                self.free(str(done.get("done")))
                await _write(writer, {"freed": True})
        writer.close()


async def pull(handle: Handle, transfer_seconds: float) -> None:
    """The decode side: returns once the blocks are here and freed over there. Raises TransferFailed."""
    try:
        async with asyncio.timeout(EXCHANGE_SECONDS):
            reader, writer = await asyncio.open_connection(handle.host, handle.port, limit=_LINE_BYTES)
    except (OSError, TimeoutError) as error:
        raise TransferFailed(f"prefill worker {handle.worker_id} cannot be reached: {error}") from None
    try:
        async with asyncio.timeout(EXCHANGE_SECONDS + transfer_seconds):
            await _write(writer, {"pull": handle.request_id})
            answer = await _read(reader)
            if "error" in answer:
                raise TransferFailed(f"prefill worker {handle.worker_id}: {answer['error']}")
            await asyncio.sleep(transfer_seconds)
            await _write(writer, {"done": handle.request_id})
            await _read(reader)
    except _BROKEN:
        raise TransferFailed(f"prefill worker {handle.worker_id} was lost during the transfer") from None
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    fields = json.loads(await reader.readuntil(b"\n"))
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields


async def _write(writer: asyncio.StreamWriter, fields: dict[str, Any]) -> None:
    writer.write(json.dumps(fields).encode() + b"\n")
    await writer.drain()
