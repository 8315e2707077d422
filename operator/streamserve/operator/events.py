"""What keeps a kubelet from making a pod's container, read from the pod's Events: its status does not say.

A Secret, ConfigMap or volume that is mounted and missing leaves a pod in ContainerCreating without a word, as a long
pull does. The kubelet tells of it in Events alone, again and again while it tries.

    whom to ask about   pods that have been in the making for FIRST_SECONDS, each anew after AGAIN_SECONDS, later after
                        a quarter of the time that it has taken, at most SLOWEST_SECONDS
    what they say       a failure of late, if no step that comes after it (a pull, a container that is made) is newer

Of failures those that name the object win: after two minutes the kubelet also says of all volumes together that their
time is over. Of several such, which it repeats in turns, always the same one is told. Numbers that are other ones each
time (a sandbox's, a request's) are left out, or the message would change with them. Pure; `edge/pod_events.py` asks.
Times are seconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from streamserve.operator.observe import Observed, Pod, Router, seconds_of

FIRST_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 10.0
SLOWEST_SECONDS: Final = 60.0
MAX_CAUSE_LENGTH: Final = 300
FAILURES: Final = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})
STEPS: Final = frozenset({"Pulling", "Pulled", "Created", "Started"})
_TOGETHER: Final = "Unable to attach or mount volumes"
_SHARE: Final = 0.25
_OF_LATE_SECONDS: Final = 150.0
"""A kubelet comes back to a volume after two minutes at the latest."""
_OTHER_EACH_TIME: Final = re.compile(r"\b([0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{12,})\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pod's Events said when they were last read; no cause where nothing is wrong."""

    at_seconds: float
    cause: str = ""


def due_seconds(pod: Pod | Router, answer: Answer | None) -> float:
    """When its Events are to be read, of a pod that is in the making; `answer`: what they said last."""
    since = pod.making_since_seconds or 0.0
    if answer is None:
        return since + FIRST_SECONDS
    taken = answer.at_seconds - since
    return answer.at_seconds + min(SLOWEST_SECONDS, max(AGAIN_SECONDS, _SHARE * taken))


def told(observed: Observed, answers: Mapping[str, Answer]) -> Observed:
    """With what was answered, of pods whose containers are still not there."""
    making = {pod.uid for pod in in_the_making(observed)}
    causes = {uid: answer.cause for uid, answer in answers.items() if uid in making}
    pods = tuple(replace(pod, held_back=causes.get(pod.uid, "")) for pod in observed.pods)
    routers = tuple(replace(router, held_back=causes.get(router.uid, "")) for router in observed.routers)
    return replace(observed, pods=pods, routers=routers)


def in_the_making(observed: Observed) -> Iterator[Pod | Router]:
    pods: tuple[Pod | Router, ...] = (*observed.pods, *observed.routers)
    for pod in pods:
        if pod.making_since_seconds is not None and not pod.leaving:
            yield pod


def cause_of(events: Iterable[Mapping[str, Any]]) -> str:
    """Why the containers of one pod are not made; empty where its Events tell of no failure, or of steps after it."""
    known = [event for event in events if event.get("reason") in FAILURES | STEPS]
    stepped = max((_seconds(event) for event in known if event["reason"] in STEPS), default=-1.0)
    failures = [event for event in known if event["reason"] in FAILURES and _seconds(event) > stepped]
    if not failures:
        return ""
    newest = max(map(_seconds, failures))
    of_late = [event for event in failures if _seconds(event) >= newest - _OF_LATE_SECONDS]
    chosen = min(of_late, key=lambda event: (_words(event).startswith(_TOGETHER), event["reason"], _words(event)))
    return f"{chosen['reason']}: {_words(chosen) or 'no message'}"


def _words(event: Mapping[str, Any]) -> str:
    said = _OTHER_EACH_TIME.sub("…", " ".join(str(event.get("message") or "").split()))
    return said if len(said) <= MAX_CAUSE_LENGTH else said[: MAX_CAUSE_LENGTH - 1] + "…"


def _seconds(event: Mapping[str, Any]) -> float:
    """When it was last seen. Who writes by the newer API fills in other fields than kubelets do."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    found = next((time for time in times if time), event.get("metadata", {}).get("creationTimestamp"))
    return seconds_of(found)
