"""Imported first by a program, for its effect: one that is told to stop while it starts ends at once.

The first process of a container gets no signal that it does not handle, SIGTERM among them. A pod that is deleted while
its program still imports would be waited for until its grace is over, five minutes for a router. What a program does
about the signal later takes the place of this.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _end)
