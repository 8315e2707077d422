"""Events of pods in the making are read: in one call each, rarely, and without harm where they cannot be."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from streamserve.contract.lanes import Slot
from streamserve.operator.edge import pod_events
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
        self.paths: list[str] = []

    async def get(self, path: str) -> dict[str, Any]:
        self.paths.append(path)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {"items": self.items}


class Bench:
    def __init__(self) -> None:
        self.server = Server()
        server: Any = self.server
        self.events = PodEvents(server)

    def told(self, seen: Observed, now: float = NOW, key: tuple[str, str] = KEY) -> list[str]:
        found = asyncio.run(self.events.told(key, seen, now))
        return [pod.held_back for pod in (*found.pods, *found.routers)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def making(name: str = "llama-decode-0-0-0123456789", uid: str = "u1") -> Pod:
    return Pod(
        name=name, uid=uid, slot=Slot("decode", 0), lane=0, revision="r", live={}, making_since_seconds=NOW - 60.0
    )


def test_one_call_asks_for_the_events_of_one_pod(bench: Bench) -> None:
    assert bench.told(Observed(pods=(making(),))) == ['FailedMount: secret "tls" not found']
    (path,) = bench.server.paths
    assert urlsplit(path).path == "/api/v1/namespaces/llm/events"
    selector = "involvedObject.name=llama-decode-0-0-0123456789,involvedObject.uid=u1"
    assert parse_qs(urlsplit(path).query) == {"fieldSelector": [selector], "limit": ["200"]}


def test_routers_are_asked_about_as_well(bench: Bench) -> None:
    seen = Observed(routers=(Router(name="llama-router-1", uid="r", making_since_seconds=NOW - 60.0),))
    assert bench.told(seen) == ['FailedMount: secret "tls" not found']


def test_an_answer_is_kept_and_asked_for_again_when_it_is_due(bench: Bench) -> None:
    seen = Observed(pods=(making(),))
    bench.told(seen)
    assert bench.told(seen, NOW + 1.0) == ['FailedMount: secret "tls" not found']
    assert len(bench.server.paths) == 1
    assert bench.events.again_seconds(KEY, seen, NOW + 1.0) == 14.0
    bench.server.items = []
    assert bench.told(seen, NOW + 15.0) == [""]
    assert len(bench.server.paths) == 2


def test_nothing_is_asked_while_every_container_is_there(bench: Bench) -> None:
    seen = Observed(pods=(Pod(name="p", uid="u", slot=Slot("decode", 0), lane=0, revision="r", live={}),))
    assert bench.told(seen) == [""]
    assert bench.server.paths == []
    assert bench.events.again_seconds(KEY, seen, NOW) is None


def test_what_was_known_stays_while_the_server_does_not_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen, known = Observed(pods=(making(),)), 'FailedMount: secret "tls" not found'
    bench.told(seen)
    bench.server.error = ServerFailed("etcd", status=500)
    assert bench.told(seen, NOW + 20.0) == [known]
    assert bench.told(seen, NOW + 21.0) == [known]
    assert len(bench.server.paths) == 2
    bench.server.error, bench.server.hangs = None, True
    monkeypatch.setattr(pod_events, "LIMIT_SECONDS", 0.01)
    assert bench.told(seen, NOW + 60.0) == [known]


def test_an_operator_that_may_not_read_events_says_so_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.server.error = Refused("events is forbidden", status=403)
    seen = Observed(pods=(making(),))
    with caplog.at_level("WARNING"):
        for turn in range(3):
            assert bench.told(seen, NOW + turn * 10 * AGAIN_SECONDS) == [""]
    assert len(bench.server.paths) == 3
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1


def test_all_pairs_together_make_few_calls_a_second_and_everybody_has_a_turn(bench: Bench) -> None:
    seen = {("llm", f"pair-{number}"): Observed(pods=(making(uid=f"u{number}"),)) for number in range(12)}
    answered: set[tuple[str, str]] = set()
    for second in range(3):
        before = len(bench.server.paths)
        for key, each in seen.items():
            if bench.told(each, NOW + second, key) != [""]:
                answered.add(key)
        assert len(bench.server.paths) - before <= MOST_PER_SECOND
    assert answered == set(seen)


def test_who_got_no_turn_comes_again_in_a_second(bench: Bench) -> None:
    for number in range(MOST_PER_SECOND):
        bench.told(Observed(pods=(making(uid=f"u{number}"),)), NOW, ("llm", f"pair-{number}"))
    seen = Observed(pods=(making(uid="late"),))
    assert bench.told(seen) == [""]
    assert bench.events.again_seconds(KEY, seen, NOW) == 1.0


def test_a_pair_that_is_gone_is_forgotten(bench: Bench) -> None:
    bench.told(Observed(pods=(making(),)))
    bench.events.forget(KEY)
    bench.server.items = []
    assert bench.told(Observed(pods=(making(),))) == [""]
