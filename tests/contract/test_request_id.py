"""A client's id and what routers make of it for workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.request_id import MAX_CLIENT_CHARACTERS, MAX_WORKER_CHARACTERS, for_workers, of_client

CLIENT_IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_CLIENT_CHARACTERS)
ROUTER_IDS = st.integers(0, 2**32 - 1)
NUMBERS = st.integers(1, 2**63)


@given(CLIENT_IDS, ROUTER_IDS, NUMBERS)
def test_the_clients_id_comes_back_whatever_it_is(client: str, router: int, number: int) -> None:
    made = for_workers(client, router, number)
    assert len(made) <= MAX_WORKER_CHARACTERS
    assert of_client(made) == client


@given(CLIENT_IDS, CLIENT_IDS, ROUTER_IDS, ROUTER_IDS, NUMBERS, NUMBERS)
def test_no_two_requests_share_one(one: str, other: str, router: int, another: int, first: int, second: int) -> None:
    asked = (one, router, first), (other, another, second)
    assert (for_workers(*asked[0]) == for_workers(*asked[1])) == (asked[0] == asked[1])


@pytest.mark.parametrize("name", ["canary-00ff", "job@home", "job@12345678", "a@b-1"])
def test_an_id_that_no_router_made_is_left_as_it_is(name: str) -> None:
    assert of_client(name) == name
