"""How many pods of a role a lane gets, and when an autoscaler is not followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.streampair import StreamPair
from streamserve.operator.accept import accept
from streamserve.operator.scale import Replicas, replicas
from streamserve.operator.site import Site

from .cluster import Cluster

MakeBody = Callable[..., dict[str, Any]]
BOTH = {"prefill.scaling": {"mode": "External"}, "decode.scaling": {"mode": "External"}}
DECODE = {"decode.scaling": {"mode": "External"}}


@dataclass(frozen=True)
class Case:
    edits: dict[str, Any]
    want: tuple[int, int]
    scalers: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


CASES = {
    "a fixed role follows the spec": Case({"decode.replicas": 2}, (1, 2)),
    "a fixed role ignores a scaler that is left over": Case({}, (1, 1), {"decode": 4}),
    "an external role follows its scaler": Case(DECODE, (1, 3), {"decode": 3}),
    "before there is a scaler, what runs stays": Case(DECODE, (1, 3), {}, {"decode": 3}),
    "before anything runs, the spec counts": Case(DECODE | {"decode.replicas": 2}, (1, 2)),
    "the ratio clamps and says so": Case(
        DECODE,
        (1, 4),
        {"decode": 7},
        notes=("decode: 7 asked for, 4 taken; spec.ratio keeps decode at 50 to 400 % of prefill",),
    ),
    "a lane has at most eight pods of a role": Case(
        BOTH,
        (2, 8),
        {"prefill": 2, "decode": 20},
        notes=("decode: 20 asked for, 8 taken; a lane has 1 to 8 pods of a role",),
    ),
    "nobody scales a role to nothing": Case(
        DECODE, (1, 1), {"decode": 0}, notes=("decode: 0 asked for, 1 taken; a lane has 1 to 8 pods of a role",)
    ),
    "of two ways to keep the ratio the one with more pods": Case(
        BOTH,
        (2, 5),
        {"prefill": 1, "decode": 5},
        notes=("prefill: 1 asked for, 2 taken; spec.ratio keeps decode at 50 to 400 % of prefill",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_replicas(make_body: MakeBody, name: str) -> None:
    case = CASES[name]
    pair = accept(make_body(case.edits))
    assert isinstance(pair, StreamPair)
    assert replicas(pair, case.scalers, case.running) == Replicas(*case.want, case.notes)


@settings(max_examples=50, deadline=None)
@given(prefill=st.integers(-3, 20), decode=st.integers(-3, 20), low=st.integers(1, 100), high=st.integers(100, 800))
def test_whatever_is_asked_for_the_ratio_holds_and_taking_it_again_changes_nothing(
    make_body: MakeBody, prefill: int, decode: int, low: int, high: int
) -> None:
    ratio = {"minDecodePerPrefillPercent": low, "maxDecodePerPrefillPercent": high}
    pair = accept(make_body({**BOTH, "ratio": ratio}))
    assert isinstance(pair, StreamPair)
    taken = replicas(pair, {"prefill": prefill, "decode": decode}, {})
    assert low * taken.prefill <= 100 * taken.decode <= high * taken.prefill
    again = replicas(pair, {"prefill": taken.prefill, "decode": taken.decode}, {})
    assert again == Replicas(taken.prefill, taken.decode)


def test_a_scaler_is_seeded_once_then_left_to_the_autoscaler_and_told_what_is_taken(
    make_body: MakeBody, site: Site
) -> None:
    cluster = Cluster(make_body({**DECODE, "decode.replicas": 2}), site)
    cluster.settle()
    key = ("StreamPairScaler", "tiny-decode")
    assert cluster.objects[key]["spec"] == {"pairName": "tiny", "role": "Decode", "replicas": 2}
    cluster.objects[key]["spec"]["replicas"] = 7
    cluster.settle()
    assert cluster.objects[key]["spec"]["replicas"] == 7
    assert {pod.slot.index for pod in cluster.pods if pod.slot.role == "decode"} == {0, 1, 2, 3}
    told = cluster.decide().scalers[key]
    assert (told["replicas"], told["selector"]) == (4, "streamserve.io/pair=tiny,streamserve.io/role=decode")
    assert [(each["type"], each["status"], each["reason"]) for each in told["conditions"]] == [
        ("Followed", "False", "Clamped")
    ]
    cluster.objects[key]["status"] = told
    assert cluster.decide().scalers == {}


def test_a_role_that_comes_back_to_the_spec_has_no_scaler(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(DECODE), site)
    cluster.settle()
    cluster.edit(make_body({}, generation=2))
    cluster.settle()
    assert not [key for key in cluster.objects if key[0] == "StreamPairScaler"]
