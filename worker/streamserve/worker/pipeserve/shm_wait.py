"""A reader of vLLM's shared-memory queues sleeps at once, where engines compute on the cores they wait on.

The engine core and its worker process hand every step to each other through a ring in shared memory. A reader that
finds nothing calls `sched_yield` over and over until a second after its last message, and only then sleeps on a socket
on which the writer says that it wrote (vllm/distributed/device_communicators/shm_broadcast.py, SpinCondition). With a
core for each process that saves a wake-up; on vLLM's CPU platform the other side computes on the very cores that are
yielded to nobody, and a step takes several times as long (docs/decisions/20261122-readers-of-steps-sleep.md).

That word is lost at times: a PUB socket with room for one message drops the second of two that follow each other
within a millisecond. vLLM looks again after 5 s (0.32.0; vllm-project/vllm#45224) or never (0.26.0), which a step of
more than a second runs into. So a reader here looks again after an eighth of the time it has waited: what is lost
costs an eighth of a step, and an idle reader wakes ever more seldom.

Other platforms are left as they are.
"""

from __future__ import annotations

import importlib
import math
import time
from typing import Any, Final

LOOK_AGAIN_AFTER: Final = 1 / 8
"""Of the time waited so far; at least a millisecond, which is as fine as the socket's poll is."""


def sleep_at_once() -> bool:
    """From now on, in this process, where vLLM runs on the CPU; False on another platform."""
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return False
    queues: Any = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
    if not hasattr(queues.SpinCondition.wait, "sleeps"):
        queues.SpinCondition.wait = _sleeping(queues.SpinCondition.wait)
    return True


def bound_ms(waited_seconds: float, limit_ms: int | None) -> int:
    """How long to sleep for before looking again, in ms, not beyond the caller's own limit."""
    bound = max(1, math.floor(waited_seconds * 1000 * LOOK_AGAIN_AFTER))
    return bound if limit_ms is None else min(bound, limit_ms)


def _sleeping(wait: Any) -> Any:
    """vLLM's `SpinCondition.wait` without its second of yielding, and never for longer than `bound_ms`."""

    def sleeping(condition: Any, timeout_ms: int | None = None) -> None:
        condition.busy_loop_s = -math.inf
        wait(condition, bound_ms(time.monotonic() - condition.last_read, timeout_ms))

    sleeping.sleeps = True  # type: ignore[attr-defined]
    return sleeping
