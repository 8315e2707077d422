"""Short stable fingerprints of names, for fields that have no room for the name itself."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=1_024)
def fingerprint(name: str) -> int:
    """64 bits of BLAKE2b of the name: equal names, equal numbers, on every machine and every start."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
