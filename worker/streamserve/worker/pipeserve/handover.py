"""An engine that cannot listen for KV hand-overs ends and says so, where vLLM would load for ever.

The NIXL connector listens in a thread of the engine core and waits for its word without a limit
(vllm/distributed/kv_transfer/kv_connector/v1/nixl/base_scheduler.py, `ready_event.wait()`). A thread that could not
bind, because the port is somebody else's by now, dies without that word. The core ends here instead; the worker
process sees it gone, ends as for any engine that does not start, and whoever runs it starts another.

Only an error of the socket ends it. What a stranger sends may end the thread too, but not the requests that run.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

import zmq

logger = logging.getLogger(__name__)

LISTENER: Final = "nixl_handshake_listener"
"""vLLM's name for the thread."""
EXIT_STATUS: Final = 1


def end_without_listener(end: Callable[[int], object] = os._exit) -> None:
    """In an engine core: from now on a socket's error that ends the listening thread ends the process."""
    report = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        report(failed)
        listens = failed.thread is not None and failed.thread.name == LISTENER
        if listens and isinstance(failed.exc_value, zmq.ZMQError):
            logger.critical("cannot listen for KV hand-overs: %s; this engine ends", failed.exc_value)
            end(EXIT_STATUS)

    threading.excepthook = hook
