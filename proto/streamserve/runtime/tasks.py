"""Every background task has an owner that notices when it dies and ends it when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from streamserve.runtime import logs

_log = logs.get(__name__)


class Tasks:
    """A named set of background tasks. One that raises sets `failed`; its owner decides what that means."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = asyncio.Event()
        self.error: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        self.error = task.exception()
        _log.error("task %s died: %r", task.get_name(), self.error, exc_info=self.error)
        self.failed.set()

    async def join(self, timeout_seconds: float) -> None:
        """Let what runs now end by itself, at most this long. For sets whose tasks end."""
        if running := list(self._tasks):
            await asyncio.wait(running, timeout=timeout_seconds)

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Cancel all and wait for them; one that does not end in time is logged by name."""
        pending = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        if not pending:
            return
        _, stuck = await asyncio.wait(pending, timeout=timeout_seconds)
        for task in stuck:
            _log.error("task %s did not end within %.1f s of its cancellation", task.get_name(), timeout_seconds)
