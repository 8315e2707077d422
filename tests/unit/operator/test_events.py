"""Which pods are asked about, when, and what their Events mean."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from streamserve.contract.lanes import Slot
from streamserve.operator.events import (
    AGAIN_SECONDS,
    FIRST_SECONDS,
    MAX_CAUSE_LENGTH,
    SLOWEST_SECONDS,
    Answer,
    cause_of,
    due_seconds,
    in_the_making,
    told,
)
from streamserve.operator.observe import Observed, Pod, Router

CAME = 1_800_000_000.0
SECRET = 'MountVolume.SetUp failed for volume "tls" : secret "own-tls" not found'
TOGETHER = "Unable to attach or mount volumes: unmounted volumes=[tls]: timed out waiting for the condition"


def worker(uid: str = "w", **changes: Any) -> Pod:
    """One that came to its node at CAME, and whose container is being made since."""
    pod = Pod(name=f"tiny-{uid}", uid=uid, slot=Slot("decode", 0), lane=0, revision="r", live={})
    return replace(pod, making_since_seconds=CAME, **changes)


def router(uid: str = "r") -> Router:
    return Router(name=f"tiny-{uid}", uid=uid, making_since_seconds=CAME)


def test_nobody_is_asked_about_before_a_kubelet_had_time_to_speak() -> None:
    assert due_seconds(worker(), None) == due_seconds(router(), None) == CAME + FIRST_SECONDS
    assert FIRST_SECONDS < 10.0, "what is promised"


def test_the_same_pod_is_asked_about_ever_more_slowly() -> None:
    reads = [CAME + FIRST_SECONDS]
    for _ in range(40):
        reads.append(due_seconds(worker(), Answer(reads[-1])))
    gaps = [later - earlier for earlier, later in pairwise(reads)]
    assert (gaps[0], gaps[-1]) == (AGAIN_SECONDS, SLOWEST_SECONDS)
    assert gaps == sorted(gaps)


def test_nobody_is_asked_about_who_has_begun_or_leaves() -> None:
    running, leaving = replace(worker(), making_since_seconds=None), worker(drain="ScaledDown")
    assert not list(in_the_making(Observed(pods=(running, leaving))))


def test_an_answer_counts_until_its_pod_has_begun() -> None:
    answers = {"w": Answer(CAME, "FailedMount: x"), "r": Answer(CAME, "FailedMount: y")}
    seen = told(Observed(pods=(worker(), worker("other")), routers=(router(),)), answers)
    assert [pod.held_back for pod in seen.pods] == ["FailedMount: x", ""]
    assert [each.held_back for each in seen.routers] == ["FailedMount: y"]
    begun = told(Observed(pods=(replace(worker(), making_since_seconds=None),)), answers)
    assert begun.pods[0].held_back == ""


def event(reason: str, message: str = "m", at: int = 0, **fields: Any) -> dict[str, Any]:
    """As a kubelet writes it, seen last `at` seconds after the full minute."""
    return {"reason": reason, "message": message, "lastTimestamp": f"2026-11-21T12:00:{at:02}Z"} | fields


EVENTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing says nothing": ([], ""),
    "a Secret that is missing is named": ([event("FailedMount", SECRET)], f"FailedMount: {SECRET}"),
    "of two that a kubelet repeats in turns it is always the same one": (
        [event("FailedMount", "b", at=9), event("FailedMount", "a", at=1)],
        "FailedMount: a",
    ),
    "a failure that is not repeated any more is over": (
        [event("FailedMount", "a", lastTimestamp="2026-11-21T11:50:00Z"), event("FailedMount", "b", at=9)],
        "FailedMount: b",
    ),
    "a failure that names the object counts more than the sum of all": (
        [event("FailedMount", SECRET, at=1), event("FailedMount", TOGETHER, at=59)],
        f"FailedMount: {SECRET}",
    ),
    "the sum of all is better than nothing": ([event("FailedMount", TOGETHER)], f"FailedMount: {TOGETHER}"),
    "a pull that began since says that all is mounted": (
        [event("FailedMount", SECRET, at=1), event("Pulling", at=5)],
        "",
    ),
    "so does one of the same second": ([event("FailedMount", SECRET, at=5), event("Pulling", at=5)], ""),
    "a failure after a step of another container counts": (
        [event("Started", at=5), event("FailedCreatePodSandBox", "no address is left", at=30)],
        "FailedCreatePodSandBox: no address is left",
    ),
    "a sandbox's number, which is another each time, is left out": (
        [event("FailedCreatePodSandBox", 'sandbox "0123456789abcdef0123456789abcdef": no CNI')],
        'FailedCreatePodSandBox: sandbox "…": no CNI',
    ),
    "so is the number of a cloud's request": (
        [event("FailedAttachVolume", "no: request 6b1a2f3c-1111-4222-8333-0123456789ab")],
        "FailedAttachVolume: no: request …",
    ),
    "what the scheduler or anybody else says is not it": (
        [event("Scheduled"), event("Unhealthy", type="Warning"), event("FailedToRetrieveImagePullSecret")],
        "",
    ),
    "lines become one": ([event("FailedMount", "a\n  b\n")], "FailedMount: a b"),
    "an event of the newer kind has its times elsewhere": (
        [
            event("Pulling", at=5),
            {
                "reason": "FailedMount",
                "message": "new",
                "eventTime": "2026-11-21T12:00:01.000000Z",
                "series": {"count": 4, "lastObservedTime": "2026-11-21T12:00:59.000000Z"},
            },
        ],
        "FailedMount: new",
    ),
    "without a time it is as old as its object": (
        [{"reason": "FailedMount", "message": "m", "metadata": {"creationTimestamp": "2026-11-21T12:00:00Z"}}],
        "FailedMount: m",
    ),
    "without words it is told all the same": ([event("FailedMount", "")], "FailedMount: no message"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_of_what_events_say(name: str) -> None:
    events, want = EVENTS[name]
    assert cause_of(events) == want
    assert cause_of(reversed(events)) == want


def test_a_long_message_is_cut() -> None:
    cause = cause_of([event("FailedMount", "words " * 200)])
    assert cause.endswith("…")
    assert len(cause) == len("FailedMount: ") + MAX_CAUSE_LENGTH
