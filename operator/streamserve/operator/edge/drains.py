"""Marked pods are asked to finish what they run: of a lane its prefill workers first, then its decode workers.

A decode worker takes what the prefill workers of its lane have handed over, so it is asked HANDOVER_SECONDS after the
last of them has finished, or after one has not answered PATIENCE times. When a worker runs nothing any more its pod's
uid is in `finished`, and the core deletes it; the end of a drain that does not finish is the core's to see as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from streamserve.operator.edge.members import Members, Worker
from streamserve.operator.edge.peers import Peers
from streamserve.operator.edge.store import Key
from streamserve.runtime import logs
from streamserve.runtime.tasks import Tasks

HANDOVER_SECONDS: Final = 0.5
CALL_SECONDS: Final = 20.0
PATIENCE: Final = 5
_RETRY_SECONDS: Final = 1.0
_log = logs.get(__name__)


class Drains:
    """`ask` is told when a worker has finished."""

    def __init__(self, peers: Peers, ask: Callable[[Key], None]) -> None:
        self._peers = peers
        self._ask = ask
        self._tasks = Tasks("drain")
        self._finished: dict[Key, set[str]] = {}
        self._running: dict[tuple[Key, str], asyncio.Task[None]] = {}
        self._marked: dict[Key, dict[str, Worker]] = {}

    def finished(self, key: Key) -> frozenset[str]:
        return frozenset(self._finished.get(key, ()))

    def want(self, key: Key, members: Members, *, paused: bool = False) -> None:
        """These are the pair's processes now: begin with those that were marked, give up those that went. Of a pair
        that is paused nobody is asked any more."""
        present = {worker.uid for worker in members.workers}
        if key in self._finished:
            self._finished[key] &= present
        marked = [] if paused else [worker for worker in members.workers if worker.drains and worker.address]
        self._marked[key] = {worker.uid: worker for worker in marked}
        for uid, worker in self._marked[key].items():
            if uid not in self._finished.get(key, ()) and (key, uid) not in self._running:
                self._running[key, uid] = self._tasks.spawn(worker.pod, self._drain(key, members.pair_uid, worker))

    def forget(self, key: Key) -> None:
        self._finished.pop(key, None)
        self._marked.pop(key, None)

    async def stop(self) -> None:
        await self._tasks.stop()

    async def _drain(self, key: Key, pair_uid: str, worker: Worker) -> None:
        try:
            if worker.role == "decode":
                await self._after_its_prefills(key, worker)
            failures = 0
            while self._is_marked(key, worker) and failures < PATIENCE:
                left = await self._peers.drain(worker.address, pair_uid, worker.id, CALL_SECONDS)
                if left == 0:
                    self._finished.setdefault(key, set()).add(worker.uid)
                    self._ask(key)
                    return
                failures = failures + 1 if left is None else 0
                if failures:
                    await asyncio.sleep(_RETRY_SECONDS)
            if failures:
                _log.warning("pod %s/%s does not answer Drain", key[0], worker.pod)
        finally:
            del self._running[key, worker.uid]

    async def _after_its_prefills(self, key: Key, worker: Worker) -> None:
        """Of those that drain now, once: one that does not answer is asked again and again, and is not waited for."""
        waits = [
            self._running[key, other.uid]
            for other in self._marked.get(key, {}).values()
            if other.lane == worker.lane and other.role == "prefill" and (key, other.uid) in self._running
        ]
        if waits:
            await asyncio.wait(waits)
            await asyncio.sleep(HANDOVER_SECONDS)

    def _is_marked(self, key: Key, worker: Worker) -> bool:
        return worker.uid in self._marked.get(key, {})
