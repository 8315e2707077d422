"""The record on which a canary is judged: read back as written, and garbage refused with a reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract import goodput
from streamserve.contract.goodput import GoodputError, GoodputMinute, LaneGoodput
from streamserve.contract.runtime_config import ConfigId


def record() -> GoodputMinute:
    row = LaneGoodput(
        lane="lane-0",
        workload="code",
        requests=12,
        requests_within_slo=11,
        tokens_within_slo=900,
        engine_seconds=4.25,
    )
    return GoodputMinute(minute=29_000_000, config=ConfigId(uid="u", generation=3, step=1), rows=(row,))


def test_a_record_is_read_back_as_written() -> None:
    assert goodput.decode(goodput.encode(record())) == record()


NAMES = st.text(min_size=1, max_size=32)
ROWS = st.builds(
    lambda lane, workload, within, more, tokens, seconds: LaneGoodput(
        lane=lane,
        workload=workload,
        requests=within + more,
        requests_within_slo=within,
        tokens_within_slo=tokens,
        engine_seconds=seconds,
    ),
    NAMES,
    NAMES,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 2**50),
    st.floats(0, 1e9),
)
RECORDS = st.builds(
    GoodputMinute,
    minute=st.integers(0, 2**40),
    config=st.builds(
        ConfigId,
        uid=st.text(min_size=1, max_size=64),
        generation=st.integers(0, 2**63 - 1),
        step=st.integers(0, 2**32 - 1),
    ),
    rows=st.lists(ROWS, max_size=8).map(tuple),
)


@settings(deadline=None)
@given(RECORDS)
def test_any_record_is_read_back_as_written(made: GoodputMinute) -> None:
    assert goodput.decode(goodput.encode(made)) == made


@settings(deadline=None)
@given(RECORDS, st.data())
def test_a_record_that_lost_or_changed_a_byte_is_refused_or_read_and_nothing_else_is_raised(
    made: GoodputMinute, data: st.DataObject
) -> None:
    wire = bytearray(goodput.encode(made))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        goodput.decode(bytes(wire[: data.draw(st.integers(0, len(wire)))]))
    except GoodputError as error:
        assert str(error)


REFUSED = {
    "another version": ('"version":1', '"version":2', "version"),
    "more requests within their SLO than ended": ('"requests_within_slo":11', '"requests_within_slo":13', "13 of 12"),
    "tokens below zero": ('"tokens_within_slo":900', '"tokens_within_slo":-1', "tokens_within_slo"),
    "time that is no number": ('"engine_seconds":4.25', '"engine_seconds":NaN', "engine_seconds"),
    "a field that this reader does not know": ('"minute"', '"hour"', "minute|hour"),
}


@pytest.mark.parametrize(("old", "new", "says"), REFUSED.values(), ids=REFUSED)
def test_a_record_is_refused_by_name_when_it_has(old: str, new: str, says: str) -> None:
    wire = goodput.encode(record()).decode()
    assert old in wire
    with pytest.raises(GoodputError, match=says):
        goodput.decode(wire.replace(old, new))


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(GoodputError):
        goodput.decode(data)


def test_a_record_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(GoodputError, match="over the"):
        goodput.decode(b" " * (goodput.MAX_BYTES + 1))
