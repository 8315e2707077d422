"""Where a worker is: read back as written, garbage refused with a reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract import endpoint
from streamserve.contract.endpoint import EndpointError
from streamserve.v1 import worker_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
ENDPOINTS = st.builds(
    worker_pb2.WorkerEndpoint,
    id=st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=253),
    role=st.sampled_from(["prefill", "decode"]),
    lane=TEXT,
    revision=TEXT,
    address=TEXT,
    boot_id=st.integers(0, 2**64 - 1),
    pair_uid=TEXT,
    engine=TEXT,
    engine_version=TEXT,
)


@settings(deadline=None)
@given(ENDPOINTS)
def test_any_endpoint_is_read_back_as_written(written: worker_pb2.WorkerEndpoint) -> None:
    assert endpoint.decode(endpoint.encode(written)) == written


@given(st.binary(max_size=512) | st.text(max_size=512))
def test_garbage_is_refused_and_raises_nothing_else(data: bytes | str) -> None:
    with pytest.raises(EndpointError):
        endpoint.decode(data)


REFUSED = {
    "no object": (b"[]", "document"),
    "not UTF-8": (b"\xff\xfe", "document|not readable"),
    "another version": (b'{"version": 2, "id": "lane-0-decode-0"}', "version"),
    "no version": (b'{"id": "lane-0-decode-0"}', "version"),
    "nobody": (b'{"version": 1, "id": ""}', "id"),
    "an address that is no text": (b'{"version": 1, "id": "a", "address": 4}', "address"),
    "a boot of more than 64 bits": (b'{"version": 1, "id": "a", "boot_id": 18446744073709551616}', "boot_id"),
    "a boot below nothing": (b'{"version": 1, "id": "a", "boot_id": -1}', "boot_id"),
    "brackets without end": (b"[" * 10_000, "not readable|document"),
    "too much": (b" " * (endpoint.MAX_BYTES + 1), "16385 bytes"),
}


@pytest.mark.parametrize(("data", "where"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(data: bytes, where: str) -> None:
    with pytest.raises(EndpointError, match=where):
        endpoint.decode(data)


def test_a_later_worker_may_say_more() -> None:
    said = b'{"version": 1, "id": "a", "zone": "north"}'
    assert endpoint.decode(said) == worker_pb2.WorkerEndpoint(id="a")
