"""Token ids on the wire: little-endian uint32, one buffer, no object per token until somebody needs one."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

from streamserve.contract.errors import InvalidRequest


def pack(ids: Iterable[int]) -> bytes:
    """The wire form of `ids`. Raises InvalidRequest when one is not an unsigned 32-bit number."""
    try:
        packed = array("I", ids)
    except (OverflowError, TypeError):
        raise InvalidRequest("a token id is negative or above 4294967295", field="prompt.token_ids") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> Sequence[int]:
    """The ids in `data`. Raises InvalidRequest when its length is no multiple of 4 bytes."""
    if len(data) % 4:
        raise InvalidRequest(
            f"ids_le32 has {len(data)} bytes; send 4 little-endian bytes for each token",
            field="prompt.token_ids",
        )
    ids = array("I")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
