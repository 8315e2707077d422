"""The short way for the next chunk of a running answer is the long way, where it applies at all."""

from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.runtime_config import FailurePolicy
from streamserve.router.scheduler.session import Chunk, Decoding, Forward, HandingOff, Route, Session

ROUTE = Route(lane="lane-0", prefill_worker="p", decode_worker="d", mode="remote")


def decoding(sent: int, attempt: int = 1) -> Session:
    session = Session(one_token=False, policy=lambda: FailurePolicy.DEGRADE, may_retry=lambda: True)
    session.state = HandingOff(attempt, ROUTE)
    session.handle(Chunk(attempt, 0, sent, False, b""))
    return session


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 5), st.integers(1, 3))
def test_it_moves_as_handle_does_or_not_at_all(sent: int, first: int, count: int, attempt: int) -> None:
    short, long = decoding(sent), decoding(sent)
    before = short.state
    if short.goes_on(attempt, first, count):
        assert long.handle(Chunk(attempt, first, count, False, b"x")) == [Forward(1, b"x", ROUTE, False)]
        assert (short.state, short.tokens_sent) == (long.state, long.tokens_sent)
    else:
        assert (short.state, short.tokens_sent) == (before, sent)


def test_the_chunk_that_is_due_goes_on() -> None:
    session = decoding(3)
    assert session.goes_on(1, 3, 2)
    assert session.state == Decoding(1, ROUTE, 5)


def test_the_first_chunk_takes_the_long_way_for_it_carries_the_route() -> None:
    session = Session(one_token=False, policy=lambda: FailurePolicy.DEGRADE, may_retry=lambda: True)
    session.state = HandingOff(1, ROUTE)
    assert not session.goes_on(1, 0, 1)
