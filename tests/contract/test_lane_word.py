"""What a router says of its lanes: read back as written, garbage refused with a reason, silence told from judgement."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract import lane_word
from streamserve.contract.lane_word import LaneReport, LaneWord, LaneWordError

REPORTS = st.builds(
    LaneReport,
    state=st.sampled_from(["WAITING", "PROBING", "READY", "FENCED"]),
    reason=st.text(max_size=200),
    revision=st.text(max_size=63),
)
WORDS = st.builds(
    LaneWord, settled=st.booleans(), lanes=st.dictionaries(st.text(min_size=1, max_size=63), REPORTS, max_size=8)
)


@settings(deadline=None)
@given(WORDS)
def test_any_word_is_read_back_as_written(word: LaneWord) -> None:
    assert lane_word.decode(lane_word.encode(word)) == word


@given(st.binary(max_size=512) | st.text(max_size=512))
def test_garbage_is_refused_and_raises_nothing_else(data: bytes | str) -> None:
    with pytest.raises(LaneWordError):
        lane_word.decode(data)


REFUSED = {
    "no object": (b"[]", "document"),
    "another version": (b'{"version": 2, "settled": true, "lanes": {}}', "version"),
    "an object with nothing in it": (b"{}", "lanes"),
    "lanes at its top, which are no word that no lane is known": (b'{"lane-0": {"state": "READY"}}', "lanes"),
    "no word whether it has judged": (b'{"version": 1, "lanes": {}}', "settled"),
    "a lane without a state": (b'{"lanes": {"lane-0": {"reason": "why"}}}', "lanes.lane-0.state"),
    "a lane that is no object": (b'{"lanes": {"lane-0": "READY"}}', "lanes.lane-0"),
    "too much": (b" " * (lane_word.MAX_BYTES + 1), "4194305 bytes"),
}


@pytest.mark.parametrize(("data", "where"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(data: bytes, where: str) -> None:
    with pytest.raises(LaneWordError, match=where):
        lane_word.decode(data)


def test_a_later_router_may_say_more() -> None:
    said = b'{"version": 1, "settled": true, "lanes": {"lane-0": {"state": "READY", "since": 3}}, "of": "tomorrow"}'
    assert lane_word.decode(said) == LaneWord(lanes={"lane-0": LaneReport(state="READY")})


@pytest.mark.parametrize("state", ["WAITING", "PROBING"])
def test_a_router_that_has_just_started_says_nothing_of_lanes_that_it_has_not_judged(state: str) -> None:
    word = LaneWord(settled=False, lanes={"lane-0": LaneReport(state=state)})
    assert word.of("lane-0") is None
    assert word.of("lane-1") is None


def test_a_lane_that_a_settled_router_does_not_know_is_none() -> None:
    report = LaneWord().of("lane-0")
    assert report is not None
    assert (report.state, report.reason) == ("", "no router knows the lane")
