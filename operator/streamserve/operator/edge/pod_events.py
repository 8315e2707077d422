"""Reads the Events of pods whose containers are not being made, at a rate that an API server does not notice.

    GET …/events?fieldSelector=involvedObject.uid=…    one call for a pod; `events.py` says when, and what it means

An Event costs the API server a look through all of its namespace, so one call follows the other, MOST_PER_SECOND at
most for all StreamPairs together, and the pod that has been due for longest comes first. No reconcile waits for it: it
is told what was read last, and the pair is looked at again when a pod's cause has become another. A call that fails
leaves what was known. Nothing is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

from streamserve.operator import events
from streamserve.operator.edge.api import Api
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.outcomes import ApiError
from streamserve.operator.edge.resources import EVENT
from streamserve.operator.edge.store import Key
from streamserve.operator.events import Answer
from streamserve.operator.observe import Observed, Pod, Router
from streamserve.runtime import logs

MOST_PER_SECOND: Final = 5
LOOK_SECONDS: Final = 1.0
LIMIT_SECONDS: Final = 3.0
MOST_EVENTS: Final = 200
_log = logs.get(__name__)


class PodEvents:
    """What is known of each StreamPair's pods that are in the making, by uid."""

    def __init__(self, api: Api, fence: Fence, *, ask: Callable[[Key], None], now: Callable[[], float]) -> None:
        """`now` in seconds since the epoch."""
        self._api = api
        self._fence = fence
        self._ask = ask
        self._now = now
        self._making: dict[Key, dict[str, Pod | Router]] = {}
        self._answers: dict[str, Answer] = {}
        self._trouble = ""

    def told(self, key: Key, observed: Observed) -> Observed:
        """`observed` with what keeps its pods back, as far as is known; they are asked about from now on."""
        before = self._making.pop(key, {})
        making = {pod.uid: pod for pod in events.in_the_making(observed)}
        for uid in before.keys() - making.keys():
            self._answers.pop(uid, None)
        if not making:
            return observed
        self._making[key] = making
        return events.told(observed, {uid: self._answers[uid] for uid in making if uid in self._answers})

    def forget(self, key: Key) -> None:
        for uid in self._making.pop(key, {}):
            self._answers.pop(uid, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause = await self.turn()
            await asyncio.sleep(pause)

    async def turn(self) -> float:
        """Asks about the pod that is due, if there is one. Returns the seconds until the next turn."""
        if not self._fence.is_up:
            return LOOK_SECONDS
        due = min(
            (
                (events.due_seconds(pod, self._answers.get(uid)), uid, key, pod)
                for key, making in self._making.items()
                for uid, pod in making.items()
            ),
            key=lambda each: each[:2],
            default=None,
        )
        if due is None or due[0] > self._now():
            return LOOK_SECONDS if due is None else min(LOOK_SECONDS, due[0] - self._now())
        _, uid, key, pod = due
        before = self._answers[uid].cause if uid in self._answers else ""
        cause = await self._cause(key, pod, before)
        if uid in self._making.get(key, {}):
            self._answers[uid] = Answer(self._now(), cause)
            if cause != before:
                self._ask(key)
        return 1.0 / MOST_PER_SECOND

    async def _cause(self, key: Key, pod: Pod | Router, before: str) -> str:
        selector = f"involvedObject.name={pod.name},involvedObject.uid={pod.uid}"
        query = urlencode({"fieldSelector": selector, "limit": MOST_EVENTS})
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                found = await self._api.get(f"{EVENT.path(key[0])}?{query}")
        except (ApiError, TimeoutError) as error:
            trouble = f"{type(error).__name__}: {error or 'no answer in time'}"
            if trouble != self._trouble:
                _log.warning("the Events of pod %s/%s cannot be read: %s", key[0], pod.name, trouble)
            self._trouble = trouble
            return before
        self._trouble = ""
        return events.cause_of(found.get("items") or ())
