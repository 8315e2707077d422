"""Runtime configuration: identity, order, and a wire form that refuses garbage with a reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract import runtime_config
from streamserve.contract.runtime_config import (
    Canary,
    ConfigError,
    ConfigId,
    DepthPolicyName,
    RuntimeConfig,
    Slo,
    SpeculationConfig,
)

_ids = st.builds(ConfigId, uid=st.sampled_from(["a", "b"]), generation=st.integers(0, 5), step=st.integers(0, 3))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(_ids, _ids)
def test_of_two_configurations_of_one_pair_exactly_the_later_supersedes(one: ConfigId, two: ConfigId) -> None:
    if one.uid != two.uid:
        assert not one.supersedes(two)
        assert not two.supersedes(one)
    else:
        assert one.supersedes(two) + two.supersedes(one) == (one.order != two.order)
    assert one.supersedes(None)


@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_refused_with_a_reason_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        runtime_config.decode(data)
    assert str(caught.value)


def test_a_whole_configuration_is_read_back_as_written() -> None:
    config = RuntimeConfig(
        id=ConfigId(uid="u", generation=3, step=1),
        served_names=("tiny",),
        speculation=SpeculationConfig(policy=DepthPolicyName.FIXED, min_depth=1, max_depth=6, fixed_depth=3),
        workload_slos={"code": Slo(ttft_ms=500, tpot_ms=30)},
    )
    back = runtime_config.decode(runtime_config.encode(config))
    assert back == config
    assert back.slo_of("code").tpot_ms == 30
    assert back.slo_of("other") == config.slo


def test_a_canary_lane_obeys_the_canary_and_every_other_lane_the_rest() -> None:
    tried = SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=6, fixed_depth=6)
    config = RuntimeConfig(
        id=ConfigId(uid="u", generation=3), canary=Canary(lanes=("lane-0", "lane-2"), speculation=tried)
    )
    back = runtime_config.decode(runtime_config.encode(config))
    assert back == config
    assert [back.for_lane(f"lane-{lane}").speculation == tried for lane in range(4)] == [True, False, True, False]
    assert back.for_lane("lane-1").speculation == config.speculation
    assert back.for_lane("lane-0").id == config.id


def test_without_a_canary_the_wire_form_does_not_speak_of_one_and_every_lane_obeys_the_same() -> None:
    config = RuntimeConfig(id=ConfigId(uid="u", generation=3))
    assert b"canary" not in runtime_config.encode(config)
    assert config.for_lane("lane-0") is config


REFUSED = {
    "another version": ('"version":1', '"version":2', "version 2 is not 1"),
    "a field that this component does not know": ('"served_names"', '"served_name"', "served_name"),
    "a depth below zero": ('"min_depth":0', '"min_depth":-1', "min_depth"),
    "a minimum above the maximum": ('"min_depth":0', '"min_depth":5', "above max_depth"),
    "a policy that is not built": ('"Goodput"', '"Magic"', "policy"),
}


@pytest.mark.parametrize(("old", "new", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_configuration_is_refused_by_name_when_it_has(old: str, new: str, says: str) -> None:
    wire = runtime_config.encode(RuntimeConfig(id=ConfigId(uid="u", generation=1))).decode()
    assert old in wire
    with pytest.raises(ConfigError, match=says):
        runtime_config.decode(wire.replace(old, new))


def test_a_configuration_over_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="262144"):
        runtime_config.decode(b" " * (runtime_config.MAX_BYTES + 1))
