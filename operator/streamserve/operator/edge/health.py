"""Whether the operator lives (restart it if not) and whether it is ready.

    live     no watch has been silent for SILENT_SECONDS while the API server answers others, and the controller turns
    ready    every watch is up, and the API server answered within ANSWER_SECONDS

A server that is away makes the operator unready, never dead: a restart would not bring it back. Watches are heard at
least once a minute, for the server sends bookmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from streamserve.operator.edge import watch
from streamserve.operator.edge.controller import Controller
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.lease import Elector

SILENT_SECONDS: Final = 240.0
ANSWER_SECONDS: Final = 30.0


class Health:
    """`watches` are read, never changed."""

    def __init__(
        self,
        watches: Sequence[watch.Health],
        controller: Controller,
        elector: Elector,
        fence: Fence,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._watches = watches
        self._controller = controller
        self._elector = elector
        self._fence = fence
        self._clock = clock

    def silence_seconds(self) -> float:
        return max(self._clock() - each.heard_at for each in self._watches)

    def live(self) -> str | None:
        for each in self._watches:
            silence = self._clock() - each.heard_at
            if silence > SILENT_SECONDS and self._server_answers():
                return f"the watch of {each.what} has been silent for {silence:.0f} s"
        return self._controller.trouble()

    def ready(self) -> str | None:
        if troubles := [f"{each.what}: {each.trouble}" for each in self._watches if each.trouble]:
            return "; ".join(troubles)
        if not self._server_answers():
            return f"the API server has not answered for {ANSWER_SECONDS:g} s"
        return None

    def _server_answers(self) -> bool:
        return self._fence.now() - self._elector.answered_at < ANSWER_SECONDS
