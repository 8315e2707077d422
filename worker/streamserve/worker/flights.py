"""The requests that this server is working on: one flight for each attempt of each request.

A flight ends once: it is finished by its handler, or doomed by somebody else (Abort, the engine's death, the end of a
drain) with the error that its client shall see. The engine knows it as "<request id>#<attempt>".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from streamserve.contract.errors import DuplicateRequest, StreamServeError

T = TypeVar("T")
_REMEMBERED_PREFILLS: Final = 4_096


def engine_id(request_id: str, attempt: int) -> str:
    return f"{request_id}#{attempt}"


@dataclass(slots=True, eq=False)
class Flight:
    request_id: str
    attempt: int
    in_engine: bool = True
    doom: asyncio.Future[StreamServeError] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def engine_id(self) -> str:
        return engine_id(self.request_id, self.attempt)

    def fail(self, error: StreamServeError) -> None:
        if not self.doom.done():
            self.doom.set_result(error)

    async def finish(self, work: Awaitable[T], wait_seconds: float = 5.0) -> T:
        """The result of `work`, unless the flight is doomed first: then `work` is cancelled and the error raised, after
        at most `wait_seconds`."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self.doom), return_when=asyncio.FIRST_COMPLETED)
            # Work that fails in the same moment fails because of the doom: its engine was told, too.
            if task.done() and not (self.doom.done() and _failed(task)):
                return task.result()
            raise self.doom.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=wait_seconds)


def _failed(task: asyncio.Future[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


class Flights:
    def __init__(self) -> None:
        self._open: dict[str, dict[int, Flight]] = {}
        self._count = 0
        self._in_engine = 0
        self.idle = asyncio.Event()
        self.idle.set()
        # Prompts computed here whose KV may still be held, so that Abort can free it without knowing the attempt.
        self._prefilled: OrderedDict[str, set[int]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    @property
    def in_engine(self) -> int:
        """Those that the engine has not let go of: an answer that is whole may wait long for its reader."""
        return self._in_engine

    def open(self, request_id: str, attempt: int) -> Flight:
        """Raises DuplicateRequest while the same attempt of the same request runs."""
        attempts = self._open.setdefault(request_id, {})
        if attempt in attempts:
            raise DuplicateRequest(
                f"request {request_id} (attempt {attempt}) is running on this worker; wait for it or use another id"
            )
        flight = attempts[attempt] = Flight(request_id, attempt)
        self._count += 1
        self._in_engine += 1
        self.idle.clear()
        return flight

    def leave_engine(self, flight: Flight) -> None:
        """Idempotent."""
        if flight.in_engine:
            flight.in_engine = False
            self._in_engine -= 1

    def close(self, flight: Flight) -> None:
        """Idempotent."""
        attempts = self._open.get(flight.request_id, {})
        if attempts.get(flight.attempt) is not flight:
            return
        del attempts[flight.attempt]
        if not attempts:
            del self._open[flight.request_id]
        self._count -= 1
        self.leave_engine(flight)
        if not self._count:
            self.idle.set()

    def remember_prefill(self, flight: Flight) -> None:
        self._prefilled.setdefault(flight.request_id, set()).add(flight.attempt)
        self._prefilled.move_to_end(flight.request_id)
        if len(self._prefilled) > _REMEMBERED_PREFILLS:
            self._prefilled.popitem(last=False)

    def forget_prefills(self, request_id: str, attempt: int) -> list[int]:
        """The attempts of a request whose KV may be held: this one, or with 0 all. They are not known afterwards."""
        held = self._prefilled.get(request_id, set())
        chosen = [number for number in held if attempt in (0, number)]
        held.difference_update(chosen)
        if not held:
            self._prefilled.pop(request_id, None)
        return chosen

    def attempts(self, request_id: str, attempt: int) -> list[Flight]:
        """The running flights of a request: one attempt, or with 0 all."""
        running = self._open.get(request_id, {})
        return [flight for number, flight in running.items() if attempt in (0, number)]

    def fail_all(self, error: StreamServeError) -> None:
        for attempts in list(self._open.values()):
            for flight in list(attempts.values()):
                flight.fail(error)
