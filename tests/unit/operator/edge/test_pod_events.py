"""Events of pods in the making are read: in one call each, rarely, and without harm where they cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from streamserve.contract.lanes import Slot
from streamserve.operator.edge import pod_events
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.outcomes import ApiError, Refused, ServerFailed
from streamserve.operator.edge.pod_events import MOST_PER_SECOND, PodEvents
from streamserve.operator.events import AGAIN_SECONDS
from streamserve.operator.observe import Observed, Pod, Router

KEY = ("llm", "llama")
NOW = 1_800_000_000.0
MISSING = {"reason": "FailedMount", "message": 'secret "tls" not found', "lastTimestamp": "2026-11-21T12:00:00Z"}


class Server:
    """Answers with `items`, or raises `error`, or `hangs`."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = [MISSING]
        self.error: ApiError | None = None
        self.hangs = False
        self.on_call: Callable[[], None] = lambda: None
        self.paths: list[str] = []

    async def get(self, path: str) -> dict[str, Any]:
        self.paths.append(path)
        self.on_call()
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {"items": self.items}


class Bench:
    def __init__(self) -> None:
        self.server, self.now, self.asked = Server(), NOW, list[tuple[str, str]]()
        self.fence = Fence(lambda: self.now)
        self.fence.raise_until(NOW + 1e6)
        server: Any = self.server
        self.events = PodEvents(server, self.fence, ask=self.asked.append, now=lambda: self.now)

    def told(self, seen: Observed, key: tuple[str, str] = KEY) -> list[str]:
        found = self.events.told(key, seen)
        return [pod.held_back for pod in (*found.pods, *found.routers)]

    def turn(self) -> float:
        return asyncio.run(self.events.turn())

    def after_a_turn(self, seen: Observed) -> list[str]:
        self.told(seen)
        self.turn()
        return self.told(seen)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def making(name: str = "llama-decode-0-0-0123456789", uid: str = "u1") -> Pod:
    return Pod(
        name=name, uid=uid, slot=Slot("decode", 0), lane=0, revision="r", live={}, making_since_seconds=NOW - 60.0
    )


def test_one_call_asks_for_the_events_of_one_pod(bench: Bench) -> None:
    assert bench.after_a_turn(Observed(pods=(making(),))) == ['FailedMount: secret "tls" not found']
    (path,) = bench.server.paths
    assert urlsplit(path).path == "/api/v1/namespaces/llm/events"
    selector = "involvedObject.name=llama-decode-0-0-0123456789,involvedObject.uid=u1"
    assert parse_qs(urlsplit(path).query) == {"fieldSelector": [selector], "limit": ["200"]}
    assert bench.asked == [KEY], "what is news is looked at"


def test_routers_are_asked_about_as_well(bench: Bench) -> None:
    seen = Observed(routers=(Router(name="llama-router-1", uid="r", making_since_seconds=NOW - 60.0),))
    assert bench.after_a_turn(seen) == ['FailedMount: secret "tls" not found']


def test_a_reconcile_makes_no_call(bench: Bench) -> None:
    """A store of Events that hangs would hold up a kill switch."""
    assert bench.told(Observed(pods=(making(),))) == [""]
    assert bench.server.paths == []


def test_an_answer_is_kept_and_asked_for_again_when_it_is_due(bench: Bench) -> None:
    seen, known = Observed(pods=(making(),)), ['FailedMount: secret "tls" not found']
    assert bench.after_a_turn(seen) == known
    bench.now += 14.5
    assert bench.turn() == pytest.approx(0.5)
    assert bench.after_a_turn(seen) == known
    assert len(bench.server.paths) == 1
    bench.server.items, bench.now = [], bench.now + 0.5
    assert bench.after_a_turn(seen) == [""]
    assert len(bench.server.paths) == 2
    assert bench.asked == [KEY, KEY]


def test_nothing_is_asked_while_every_container_is_there(bench: Bench) -> None:
    seen = Observed(pods=(Pod(name="p", uid="u", slot=Slot("decode", 0), lane=0, revision="r", live={}),))
    assert bench.after_a_turn(seen) == [""]
    assert bench.server.paths == []


def test_who_does_not_lead_asks_nothing(bench: Bench) -> None:
    bench.fence.lower()
    assert bench.after_a_turn(Observed(pods=(making(),))) == [""]
    assert bench.server.paths == []


def test_what_was_known_stays_while_the_server_does_not_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen, known = Observed(pods=(making(),)), 'FailedMount: secret "tls" not found'
    bench.after_a_turn(seen)
    bench.server.error, bench.now = ServerFailed("etcd", status=500), NOW + 20.0
    assert bench.after_a_turn(seen) == [known]
    assert bench.turn() > 0.5, "it is not asked again at once"
    bench.server.error, bench.server.hangs, bench.now = None, True, NOW + 60.0
    monkeypatch.setattr(pod_events, "LIMIT_SECONDS", 0.01)
    assert bench.after_a_turn(seen) == [known]
    assert len(bench.server.paths) == 3
    assert bench.asked == [KEY]


def test_an_operator_that_may_not_read_events_says_so_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.server.error = Refused("events is forbidden", status=403)
    seen = Observed(pods=(making(),))
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert bench.after_a_turn(seen) == [""]
            bench.now += 10 * AGAIN_SECONDS
    assert len(bench.server.paths) == 3
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1


def test_all_pairs_together_make_few_calls_a_second_and_everybody_has_a_turn(bench: Bench) -> None:
    pairs = {("llm", f"pair-{number}"): Observed(pods=(making(uid=f"u{number}"),)) for number in range(12)}
    for key, seen in pairs.items():
        bench.told(seen, key)
    for _ in pairs:
        pause = bench.turn()
        assert pause >= 1.0 / MOST_PER_SECOND
        bench.now += pause
    assert set(bench.asked) == set(pairs)
    assert all(bench.told(seen, key) != [""] for key, seen in pairs.items())


def test_a_pair_that_is_gone_is_forgotten_also_while_it_is_asked_about(bench: Bench) -> None:
    seen = Observed(pods=(making(),))
    bench.after_a_turn(seen)
    bench.events.forget(KEY)
    assert bench.told(seen) == [""]
    bench.server.on_call = lambda: bench.events.forget(KEY)
    bench.turn()
    assert bench.told(seen) == [""]
