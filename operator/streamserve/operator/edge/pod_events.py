"""Reads the Events of pods whose containers are not being made, at a rate that an API server does not notice.

    GET …/events?fieldSelector=involvedObject.uid=…    one call for a pod; `events.py` says for which, and what it means

An Event costs the API server a look through all of its namespace, so there are MOST_PER_SECOND calls at most, for all
StreamPairs together: who gets none is served in one of the next seconds. A call that fails is no reason to hold up a
StreamPair: what was known before stays, and the pod is asked about again when it is due. Nothing is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from urllib.parse import urlencode

from streamserve.operator import events
from streamserve.operator.edge.api import Api
from streamserve.operator.edge.outcomes import ApiError
from streamserve.operator.edge.resources import EVENT
from streamserve.operator.edge.store import Key
from streamserve.operator.events import Answer
from streamserve.operator.observe import Observed, Pod, Router
from streamserve.runtime import logs

MOST_PER_SECOND: Final = 5
LIMIT_SECONDS: Final = 3.0
MOST_EVENTS: Final = 200
_WAIT_SECONDS: Final = 1.0
_log = logs.get(__name__)


class PodEvents:
    """What is known of each StreamPair's pods that are in the making, by uid."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._answers: dict[Key, dict[str, Answer]] = {}
        self._asked_at: deque[float] = deque(maxlen=MOST_PER_SECOND)
        self._trouble = ""

    async def told(self, key: Key, observed: Observed, now: float) -> Observed:
        """`observed` with what keeps its pods back. `now` in seconds since the epoch. Never raises an ApiError."""
        making = {pod.uid for pod in events.in_the_making(observed)}
        answers = {uid: answer for uid, answer in self._answers.get(key, {}).items() if uid in making}
        for pod in events.to_ask(observed, answers, now):
            if not self._has_turn(now):
                break
            before = answers.get(pod.uid, Answer(now)).cause
            # Before it is asked: a call that ends with the reconcile must not be sent again at once.
            answers[pod.uid] = Answer(now, before)
            answers[pod.uid] = Answer(now, await self._cause(key, pod, before))
        if answers:
            self._answers[key] = answers
        else:
            self.forget(key)
        return events.told(observed, answers)

    def again_seconds(self, key: Key, observed: Observed, now: float) -> float | None:
        """Until Events are to be read again; None while no container is being made."""
        left = events.again_seconds(observed, self._answers.get(key, {}), now)
        return None if left is None else max(left, _WAIT_SECONDS)

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    def _has_turn(self, now: float) -> bool:
        if len(self._asked_at) == MOST_PER_SECOND and now - self._asked_at[0] < 1.0:
            return False
        self._asked_at.append(now)
        return True

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
