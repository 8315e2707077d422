"""A process of an engine dies with the process that started it, however that one died.

vLLM ends its children when its main process ends in an orderly way. After `kill -9` the engine core and its workers
would run on, holding memory, ports and KV. Python gives every spawned child a pipe from its parent that reads
end-of-file when the parent is gone; a thread waits for that and ends the process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

_lock = threading.Lock()
_held = False


def hold_to_parent() -> None:
    """In a child process: end when the parent ends. Does nothing in a main process; may be called again."""
    global _held
    parent = multiprocessing.parent_process()
    with _lock:
        if parent is None or _held:
            return
        _held = True
    threading.Thread(target=_wait, args=(parent,), name="streamserve-lifeline", daemon=True).start()


def _wait(parent: multiprocessing.process.BaseProcess) -> None:
    # A parent that is alive is waited for as long as this process lives: the thread is a daemon.
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
