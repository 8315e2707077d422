"""A configuration becomes this worker's when its scheduler has adopted it, and only then is it echoed.

`ConfigSource` brings it, `Engine.configure` returns once no later step can use an older bound, `applied` goes into the
signals. One that the engine refuses, or does not adopt in time, changes nothing but `error`. The workers of a canary
lane obey the canary's speculation, all others the configuration's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from streamserve.contract.errors import InternalError
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.worker.pipeserve.engine import Engine

ADOPTION_SECONDS: Final = 10.0


class Reloader:
    """The `apply` of a ConfigSource."""

    def __init__(
        self,
        engine: Engine,
        lane: str,
        initial: ConfigId,
        on_change: Callable[[], None],
        *,
        timeout: float = ADOPTION_SECONDS,
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._on_change = on_change
        self._timeout = timeout
        self.applied = initial

    async def apply(self, config: RuntimeConfig) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                adopted = await self._engine.configure(config.id, config.for_lane(self._lane).speculation)
        except TimeoutError:
            raise InternalError(f"the engine did not adopt it within {self._timeout:g} s") from None
        self.applied = adopted.id
        self._on_change()
