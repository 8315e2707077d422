"""One kind of object, followed for ever: kopf's list and watch, and what it means for the cache.

kopf is the informer and nothing else of it runs: no handlers, no peering, no annotations, no finalizers. Its stream
lists in chunks, watches with bookmarks, opens a dead or silent stream anew and lists again after 410 Gone. Here is
added that a complete list also says what is gone, that everything is listed anew every `relist_seconds` (so that an
event that was lost costs a bounded time), that an error of any kind means another try, and when the stream was heard
last.

kopf opens a watch that has ended where it stopped, at once and as often as it ends. Two kinds of it are listed anew:

    a custom resource's     when its CRD is upgraded the API server ends the watches, and until then they show objects
                            of that moment without the fields that are new
                            (docs/decisions/20261123-a-custom-resources-watch-that-ends.md)
    one that was not up     it showed nothing and ended within UP_SECONDS: the server refuses it (no right to watch, too
                            many requests) or is away. That is a failure, the next try waits longer, and `trouble` says
                            so (docs/decisions/20261124-a-watch-that-is-not-up.md)

This is the one module that knows kopf's inner names; `check` says at start whether they are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import aiohttp
import kopf
from kopf._cogs.clients import auth, errors, watching
from kopf._cogs.structs import credentials, references

from streamserve.operator.edge.login import Login
from streamserve.operator.edge.resources import Resource
from streamserve.operator.edge.store import Change, Id, Store, id_of
from streamserve.operator.naming import Manifest
from streamserve.runtime import logs
from streamserve.runtime.backoff import Backoff
from streamserve.runtime.errors import SetupError

CHUNK_SIZE: Final = 500
SERVER_TIMEOUT_SECONDS: Final = 600
RELIST_SECONDS: Final = 3_600.0
CONNECT_SECONDS: Final = 10.0
UP_SECONDS: Final = 1.5 * CONNECT_SECONDS
_EARLY_SECONDS: Final = 0.9 * SERVER_TIMEOUT_SECONDS
_FAILURES: Final = (
    errors.APIError,
    errors.APISessionClosed,
    watching.WatchingError,
    credentials.LoginError,
    aiohttp.ClientError,
    SetupError,
    OSError,
    TimeoutError,
    ValueError,
)
_log = logs.get(__name__)


class _EndedEarly(Exception):
    """What follows this watch is a listing."""


@dataclass(frozen=True, eq=False, repr=False)
class _Followed(references.Resource):
    """Calls `opens` before each watch."""

    opens: Callable[[], None] = lambda: None

    def get_url(self, *, params: Any = None, **more: Any) -> str:
        if params and "watch" in params:
            self.opens()
        return super().get_url(params=params, **more)


def check() -> None:
    """Raises SetupError when this kopf does not have what we take from it."""
    wanted = {"settings", "resource", "namespace", "_iterations"}
    if not wanted <= inspect.signature(watching.infinite_watch).parameters.keys() or not watching.Bookmark.LISTED:
        raise SetupError("this version of kopf has another watch: install the one of requirements/")
    # Each failed attempt is told here, once, with what is done about it.
    logging.getLogger("kopf").setLevel(logging.CRITICAL)


@dataclass(slots=True)
class Health:
    """Of one watch. Times on the loop's clock; `trouble` is empty while all is well. `listed`: once at least.
    `refused`: the last try ended with 403."""

    what: str
    namespace: str | None
    listed: bool = False
    refused: bool = False
    heard_at: float = 0.0
    trouble: str = "has not been listed yet"


class Watch:
    """`on_change` is told whom each change concerns, `on_news` that it was listed or failed. Runs as one task."""

    def __init__(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        login: Login,
        store: Store,
        on_change: Callable[[Change], None],
        clock: Callable[[], float],
        rng: Random,
        relist_seconds: float = RELIST_SECONDS,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        what = f"{resource.plural} in {namespace or 'every namespace'}"
        self.health = Health(what, namespace, heard_at=clock())
        self._login = login
        self._store = store
        self._on_change = on_change
        self._on_news = on_news
        self._clock = clock
        self._rng = rng
        self._relist_seconds = relist_seconds
        self._backoff = Backoff(0.5, 15.0, rng)
        self._before: dict[Id, int] = {}
        self._listed: set[Id] = set()
        self._complete = False
        self._opened_at: float | None = None
        self._shown = False
        self._failures_in_a_row = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._log_in_and_follow()
            except _FAILURES as error:
                self._failed(error)
            await asyncio.sleep(self._backoff.next())

    async def _log_in_and_follow(self) -> None:
        self._complete, self._opened_at, self._shown = False, None, False
        vault = _Vault({"login": self._login()})
        auth.vault_var.set(vault)
        try:
            # Not all kinds at the same moment, and no two replicas in step.
            async with asyncio.timeout(self._relist_seconds * self._rng.uniform(0.8, 1.2)) as limit:
                await self._follow()
        except TimeoutError:
            if not limit.expired():
                raise
            if self._complete:
                self._is_up()
        finally:
            await vault.close()

    async def _follow(self) -> None:
        settings = kopf.OperatorSettings()
        settings.watching.chunk_size = CHUNK_SIZE
        settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = CONNECT_SECONDS
        settings.networking.error_backoffs = ()
        if self.resource.selector:
            settings.watching.label_selectors[kopf.EVERYTHING] = self.resource.selector
        found = _Followed(
            group=self.resource.group,
            version=self.resource.version,
            plural=self.resource.plural,
            kind=self.resource.kind,
            namespaced=True,
            opens=self._opens,
        )
        namespace = None if self.namespace is None else references.NamespaceName(self.namespace)
        # One listing and what follows it. kopf ends there, without a word, after 410 and where it could not list.
        self._before, self._listed = self._store.versions(self.resource.kind, self.namespace), set()
        with contextlib.suppress(_EndedEarly):
            async for event in watching.infinite_watch(
                settings=settings, resource=found, namespace=namespace, _iterations=1
            ):
                self.health.heard_at = self._clock()
                if event is watching.Bookmark.LISTED:
                    self._completed()
                elif isinstance(event, dict):
                    self._take(event["type"], event["object"])
        if not self._complete:
            raise TimeoutError("it could not be listed: the connection was lost or too slow")
        if not self._was_up(self._clock()):
            raise ConnectionError("it was listed, but its watch ended before it showed anything: refused, or cut off")

    def _opens(self) -> None:
        """A watch is about to be opened. Raises _EndedEarly where there has to be a listing first."""
        now, before = self._clock(), self._opened_at
        if before is not None:
            early = now - before < _EARLY_SECONDS
            if not self._was_up(now) or (early and self.resource.is_custom):
                raise _EndedEarly
        self._opened_at, self._shown = now, False

    def _was_up(self, now: float) -> bool:
        """Whether the watch that has ended was one at all."""
        if not self._shown and self._opened_at is not None and now - self._opened_at >= UP_SECONDS:
            self._is_up()
        return self._shown

    def _take(self, kind: str | None, body: Any) -> None:
        """A listed object (no kind of event), or one that was added, modified or deleted."""
        if kind is not None and not self._shown:
            self._is_up()
        if kind == "BOOKMARK":
            return
        made: Manifest = body
        if kind is None:
            made.setdefault("kind", self.resource.kind)
            made.setdefault("apiVersion", self.resource.api_version)
            self._listed.add(id_of(made))
        if kind == "DELETED":
            change = self._store.remove(made)
        elif kind is None:
            change = self._store.put(made, before=self._before, says_more=self.resource.is_custom)
        else:
            change = self._store.put(made)
        if change is not None:
            self._on_change(change)

    def _completed(self) -> None:
        for change in self._store.keep_only(self._before, self._listed):
            self._on_change(change)
        self._before, self._listed, self._complete = {}, set(), True
        self.health.listed, self.health.refused = True, False
        self._on_news()
        # A single watch that was not up may be the last word of a server that restarts; the second is no accident.
        if self._failures_in_a_row < 2:
            self._is_well()

    def _is_up(self) -> None:
        """The watch has shown something, or lives long enough to be one."""
        self._shown, self._failures_in_a_row = True, 0
        self._backoff.reset()
        self._is_well()

    def _is_well(self) -> None:
        if self.health.trouble:
            _log.info("watching %s", self.health.what)
        self.health.trouble = ""

    def _failed(self, error: Exception) -> None:
        # One that could not be listed is told by the next listing, one that was listed by its watch.
        self._failures_in_a_row += self._complete
        self.health.heard_at = self._clock()
        trouble = f"{type(error).__name__}: {error}"
        if trouble != self.health.trouble:
            _log.warning("the watch of %s failed and is tried again: %s", self.health.what, trouble)
        self.health.trouble = trouble
        self.health.refused = isinstance(error, errors.APIForbiddenError)
        self._on_news()


class _Vault(credentials.Vault):
    """Credentials that were refused end the watch, which starts anew with those that are there then."""

    async def invalidate(
        self, key: credentials.VaultKey, info: credentials.KubeContext, *, exc: Exception | None = None
    ) -> None:
        raise credentials.LoginError("the API server does not take our credentials") from exc
