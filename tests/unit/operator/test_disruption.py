"""How many pods of a pair an eviction may take at a time: one lane's worth at least, or no node could be drained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamserve.contract.streampair import StreamPair
from streamserve.operator.accept import accept
from streamserve.operator.desired import desired
from streamserve.operator.naming import key_of
from streamserve.operator.observe import Observed
from streamserve.operator.site import Site

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "of two lanes one may go": ({"lanes": 2}, 3),
    "of four lanes the two that a rollout may take": ({"lanes": 4, "update": {"maxUnavailable": 2}}, 6),
    "a rollout that takes none leaves a node its drain": (
        {"lanes": 2, "update": {"maxUnavailable": 0, "maxSurge": 1}},
        3,
    ),
    "the only lane may go with its node": ({"lanes": 1, "update": {"maxUnavailable": 0, "maxSurge": 1}}, 1),
    "also where nothing is said of updates": ({"lanes": 1, "update": None}, 1),
    "a lane of three pods goes with the first of them": (
        {"lanes": 2, "decode.replicas": 2, "ratio": {"maxDecodePerPrefillPercent": 400}},
        5,
    ),
    "a pair without lanes asks for nothing": ({"lanes": 0}, 0),
}


@pytest.mark.parametrize(("edits", "available"), CASES.values(), ids=CASES)
def test_of_its_workers_there_stay(
    make_body: Callable[..., dict[str, Any]], site: Site, edits: dict[str, Any], available: int
) -> None:
    pair = accept(make_body(edits))
    assert isinstance(pair, StreamPair), pair
    made = {key_of(each): each for each in desired(pair, site, Observed(), 0.0).objects}
    budget = made["PodDisruptionBudget", "tiny-workers"]["spec"]
    assert (budget["minAvailable"], budget["unhealthyPodEvictionPolicy"]) == (available, "AlwaysAllow")
