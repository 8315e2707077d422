"""Every hot setting of the spec reaches the runtime configuration under its own name, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamserve.contract import runtime_config as rc
from streamserve.contract.hot import HotError, runtime_config
from streamserve.contract.streampair import StreamPair

MakePair = Callable[..., StreamPair]

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the pair's name is served where no name is given": ({}, {"served_names": ("tiny",)}),
    "served names are taken as given": ({"spec.model.servedNames": ["a", "b"]}, {"served_names": ("a", "b")}),
    "depth bounds": (
        {"spec.speculation.depth": {"min": 2, "max": 4}},
        {"speculation.min_depth": 2, "speculation.max_depth": 4, "speculation.fixed_depth": 3},
    ),
    "an absent depth.max is maxDepth": (
        {"spec.speculation.depth": {"min": 0}, "spec.speculation.maxDepth": 5},
        {"speculation.max_depth": 5},
    ),
    "the fixed depth moves into the bounds": (
        {"spec.speculation.depth": {"min": 5, "max": 6}},
        {"speculation.fixed_depth": 5},
    ),
    "policy Fixed": (
        {"spec.speculation.policy": "Fixed", "spec.speculation.depth": {"min": 0, "max": 6, "fixed": 2}},
        {"speculation.policy": rc.DepthPolicyName.FIXED, "speculation.fixed_depth": 2},
    ),
    "policy Off fits every engine, whatever maxDepth is to become": (
        {"spec.speculation.policy": "Off", "spec.speculation.maxDepth": 8},
        {"speculation.policy": rc.DepthPolicyName.OFF, "speculation.max_depth": 0, "speculation.fixed_depth": 0},
    ),
    "without a method nothing is drafted": (
        {"spec.speculation": {"method": "None"}},
        {"speculation.policy": rc.DepthPolicyName.OFF, "speculation.max_depth": 0},
    ),
    "bounds of a step and of exploring": (
        {"spec.speculation.interTokenLatencyMilliseconds": 40, "spec.speculation.probePercent": 7},
        {"speculation.inter_token_latency_ms": 40, "speculation.probe_percent": 7},
    ),
    "targets, a workload's own over the default": (
        {
            "spec.slo.default": {"ttftMilliseconds": 900, "tpotMilliseconds": 30},
            "spec.slo.workloads": [{"name": "code", "tpotMilliseconds": 10}],
        },
        {"slo": rc.Slo(ttft_ms=900, tpot_ms=30), "workload_slos": {"code": rc.Slo(ttft_ms=900, tpot_ms=10)}},
    ),
    "routing": (
        {
            "spec.routing": {
                "policy": "LeastRequest",
                "weightsPercent": {"prefillQueue": 1, "transfer": 2, "decodeStep": 3, "kvPressure": 4, "slo": 5},
                "localPrefillMaxTokens": 64,
                "crossLane": "Never",
                "signalTrustMilliseconds": 500,
            }
        },
        {
            "routing": rc.RoutingConfig(
                policy=rc.RoutingPolicy.LEAST_REQUEST,
                weights_percent=rc.RoutingWeights(
                    prefill_queue=1, transfer=2, decode_step=3, kv_pressure=4, slo=5
                ),
                local_prefill_max_tokens=64,
                cross_lane=rc.CrossLane.NEVER,
                signal_trust_ms=500,
            )
        },
    ),
    "admission": (
        {"spec.admission": {"maxQueuedRequests": 9, "maxQueuedTokens": 99, "maxQueueMilliseconds": 999}},
        {"admission": rc.AdmissionConfig(max_queued_requests=9, max_queued_tokens=99, max_queue_ms=999)},
    ),
    "failure policy": ({"spec.failurePolicy": "Strict"}, {"failure_policy": rc.FailurePolicy.STRICT}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_mapping(name: str, make_pair: MakePair) -> None:
    edits, want = CASES[name]
    config = runtime_config(make_pair(edits), "uid", 3)
    for path, value in want.items():
        found: Any = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


def test_the_identity_is_the_writers(make_pair: MakePair) -> None:
    assert runtime_config(make_pair(), "uid", 7, 2).id == rc.ConfigId(uid="uid", generation=7, step=2)


def test_it_survives_the_wire(make_pair: MakePair) -> None:
    config = runtime_config(make_pair(), "uid", 1)
    assert rc.decode(rc.encode(config)) == config


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"spec.routing.policy": "PowerOfTwo"}, "PowerOfTwo"),
        ({"spec.speculation.policy": "Ema"}, "Ema"),
    ],
)
def test_a_value_that_no_component_takes_is_refused_by_name(
    edits: dict[str, Any], said: str, make_pair: MakePair
) -> None:
    with pytest.raises(HotError, match=said):
        runtime_config(make_pair(edits), "uid", 1)
