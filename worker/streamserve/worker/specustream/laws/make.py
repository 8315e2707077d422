"""Which law a policy names."""

from __future__ import annotations

from random import Random

from streamserve.worker.specustream.laws import Knowledge, Law
from streamserve.worker.specustream.laws.fixed import Fixed
from streamserve.worker.specustream.laws.goodput import Goodput
from streamserve.worker.specustream.laws.off import Off
from streamserve.worker.specustream.policy import DepthPolicy


def make_law(policy: DepthPolicy, knowledge: Knowledge, rng: Random) -> Law:
    """The law for `policy`, standing on what `knowledge` already holds."""
    match policy.policy:
        case "Goodput":
            return Goodput(policy, knowledge, rng)
        case "Fixed":
            return Fixed(policy, knowledge)
        case _:
            return Off(knowledge)
