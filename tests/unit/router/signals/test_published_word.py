"""Whatever workers call themselves, what the router says of their lanes can be written and read."""

from random import Random

import pytest

from streamserve.contract import lane_word
from streamserve.contract.keys import Keyspace
from streamserve.router.flowguard.view import FleetView, LaneState, LaneView
from streamserve.router.signals.fleet import MAX_WORDS, Fleet, FleetSettings


@pytest.mark.parametrize("odd", ["", "a" * 64, "x" * 100_000, "\ud800", "tide \u00e9 \n"])
def test_odd_names_and_reasons_can_be_published(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FleetSettings(keyspace=Keyspace("llm", "llama"), pair_uid="u", router_id=1)
    fleet = Fleet(settings, rng=Random(1))
    lane = LaneView(name=f"lane-{odd}", revision=odd, state=LaneState.FENCED, reason=odd)
    view = FleetView(now_seconds=0.0, pair_uid="u", lanes=(lane,))
    monkeypatch.setattr(fleet, "view", lambda: view)
    word = lane_word.decode(lane_word.encode(fleet._word(0.0)))
    (report,) = word.lanes.values()
    assert report.state == "FENCED"
    assert len(report.revision) == min(len(odd), MAX_WORDS)
    assert not word.settled
