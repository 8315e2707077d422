"""Which namespaces are known: of which every kind was listed once, so that what is not in the cache does not exist.

    known      each of its watches was listed
    refused    the last word to each of those that were not was 403: the namespace is gone, or our Role in it is
    awaited    neither: the process starts, or the server is away, fails or has no CRD of ours

Leading begins when no namespace is awaited and one is known. In one that is refused nothing is decided, and what is not
seen there does not count as absent; its watches go on trying, and once it is known its StreamPairs are looked at. So a
refusal need not be final: a server whose RBAC has only begun to load costs its namespaces one more try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from streamserve.operator.edge import watch
from streamserve.runtime import logs

_log = logs.get(__name__)


class Knowledge:
    """`watches` are read, never changed. `on_known` is told each namespace once, None for all of them."""

    def __init__(self, watches: Sequence[watch.Health], *, on_known: Callable[[str | None], None]) -> None:
        self._watches = watches
        self._on_known = on_known
        self._unknown = {each.namespace for each in watches}
        self._all = len(self._unknown)
        self._enough = asyncio.Event()

    def news(self) -> None:
        """A watch was listed, or failed."""
        awaited = {each.namespace for each in self._watches if not each.listed and not each.refused}
        for namespace in self._unknown - {each.namespace for each in self._watches if not each.listed}:
            self._unknown.remove(namespace)
            self._on_known(namespace)
        if not awaited and len(self._unknown) < self._all and not self._enough.is_set():
            if self._unknown:
                _log.warning("nothing is done in %s before it can be listed", " and ".join(self.unknown()))
            self._enough.set()

    async def enough(self) -> None:
        """Wait until this process may lead."""
        await self._enough.wait()

    def knows(self, namespace: str) -> bool:
        return namespace not in self._unknown and None not in self._unknown

    def unknown(self) -> list[str]:
        return sorted(namespace or "every namespace" for namespace in self._unknown)
