"""How many pods of each role a lane gets: from the spec, or from a StreamPairScaler, inside spec.ratio.

    Fixed       spec.<role>.replicas
    External    the scaler's spec.replicas; before there is a scaler, what runs now (else the spec): handing the role
                to an autoscaler drains nothing

An autoscaler looks at one role and may ask for what the other does not match. Then the nearest allowed pair of numbers
is taken, with `Fixed` roles held, and of two equally near the one with more pods; `notes` says what was not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamserve.contract.streampair import ScalingMode, StreamPair
from streamserve.contract.streampair.workers import MAX_REPLICAS_PER_LANE


@dataclass(frozen=True, slots=True)
class Replicas:
    """Pods of each role in a lane."""

    prefill: int
    decode: int
    notes: tuple[str, ...] = ()

    def of(self, role: str) -> int:
        return self.prefill if role == "prefill" else self.decode

    @property
    def pods_per_lane(self) -> int:
        return self.prefill + self.decode


def external(pair: StreamPair) -> tuple[str, ...]:
    """The roles that a StreamPairScaler owns."""
    roles = (("prefill", pair.spec.prefill), ("decode", pair.spec.decode))
    return tuple(name for name, role in roles if role.scaling.mode is ScalingMode.EXTERNAL)


def replicas(pair: StreamPair, scalers: Mapping[str, int], running: Mapping[str, int]) -> Replicas:
    """`scalers`: spec.replicas of those that exist; `running`: pods of the role in a lane, where any run."""
    outside = external(pair)
    asked = {"prefill": pair.spec.prefill.replicas, "decode": pair.spec.decode.replicas}
    for role in outside:
        asked[role] = scalers.get(role, running.get(role, asked[role]))
    taken = _nearest(pair, asked, outside)
    notes = tuple(
        f"{role}: {asked[role]} asked for, {count} taken; {_why(pair, asked[role])}"
        for role, count in taken.items()
        if count != asked[role]
    )
    return Replicas(taken["prefill"], taken["decode"], notes)


def _nearest(pair: StreamPair, asked: Mapping[str, int], outside: tuple[str, ...]) -> dict[str, int]:
    choices = [
        range(1, MAX_REPLICAS_PER_LANE + 1) if role in outside else (asked[role],) for role in ("prefill", "decode")
    ]
    allowed = [(p, d) for p in choices[0] for d in choices[1] if _within(pair, p, d)]
    if not allowed:
        return {"prefill": pair.spec.prefill.replicas, "decode": pair.spec.decode.replicas}
    p, d = min(allowed, key=lambda pd: (abs(pd[0] - asked["prefill"]) + abs(pd[1] - asked["decode"]), -sum(pd), pd))
    return {"prefill": p, "decode": d}


def _within(pair: StreamPair, prefill: int, decode: int) -> bool:
    ratio = pair.spec.ratio
    low, high = ratio.min_decode_per_prefill_percent, ratio.max_decode_per_prefill_percent
    return low * prefill <= 100 * decode <= high * prefill


def _why(pair: StreamPair, asked: int) -> str:
    if not 1 <= asked <= MAX_REPLICAS_PER_LANE:
        return f"a lane has 1 to {MAX_REPLICAS_PER_LANE} pods of a role"
    ratio = pair.spec.ratio
    low, high = ratio.min_decode_per_prefill_percent, ratio.max_decode_per_prefill_percent
    return f"spec.ratio keeps decode at {low} to {high} % of prefill"
