"""Sampling parameters, token ids, keys and errors: the small agreements of the contract."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract import sampling, tokens
from streamserve.contract.errors import ALL_ERRORS, InvalidRequest, Permanent, Retryable, from_wire
from streamserve.contract.keys import Keyspace
from streamserve.contract.sampling import Sampling
from streamserve.v1 import common_pb2

REFUSED = {
    "a negative temperature": ({"temperature": -0.1}, "temperature"),
    "a temperature that is no number": ({"temperature": math.nan}, "temperature"),
    "an infinite temperature": ({"temperature": math.inf}, "temperature"),
    "a temperature that vLLM would raise to 0.01": ({"temperature": 0.009}, "temperature"),
    "a temperature just above greedy": ({"temperature": 5e-324}, "temperature"),
    "top_p of zero": ({"top_p": 0.0}, "top_p"),
    "top_p above one": ({"top_p": 1.01}, "top_p"),
    "min_p above one": ({"min_p": 1.5}, "min_p"),
    "a presence penalty out of range": ({"presence_penalty": 2.5}, "presence_penalty"),
    "a repetition penalty of zero": ({"repetition_penalty": 0.0}, "repetition_penalty"),
    "no tokens at all": ({"max_tokens": 0}, "max_tokens"),
    "more least tokens than most": ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    "seventeen stop strings": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop string": ({"stop": [""]}, "stop"),
    "too many logprobs": ({"logprobs": 21}, "logprobs"),
}


@pytest.mark.parametrize(("given_fields", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_sampling_is_refused_by_field_for(given_fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling.from_proto(common_pb2.SamplingParams(**given_fields))  # type: ignore[arg-type]
    assert caught.value.field == f"sampling.{field}"
    assert field in caught.value.message


@given(
    st.builds(
        Sampling,
        temperature=st.just(0.0) | st.floats(sampling.MIN_TEMPERATURE, 2),
        top_k=st.integers(0, 100),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop=st.lists(st.text(min_size=1, max_size=9), max_size=4).map(tuple),
        logprobs=st.none() | st.integers(0, 20),
        max_tokens=st.none() | st.integers(1, 1000),
        ignore_eos=st.booleans(),
    )
)
def test_sampling_crosses_the_wire_unchanged(given_sampling: Sampling) -> None:
    wire = common_pb2.SamplingParams.FromString(sampling.to_proto(given_sampling).SerializeToString())
    assert sampling.from_proto(wire) == given_sampling


def test_an_explicit_zero_is_not_the_default() -> None:
    assert sampling.from_proto(common_pb2.SamplingParams(temperature=0)).temperature == 0
    assert sampling.from_proto(common_pb2.SamplingParams()).temperature == 1


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_token_ids_cross_the_wire_unchanged(ids: list[int]) -> None:
    assert list(tokens.unpack(tokens.pack(ids))) == ids


def test_token_ids_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        tokens.pack([-1])
    with pytest.raises(InvalidRequest, match="4 little-endian"):
        tokens.unpack(b"abc")


def test_every_key_of_a_pair_begins_with_namespace_pair_and_writer() -> None:
    keys = Keyspace("llm", "llama")
    writers = {"worker": [keys.worker_index, keys.worker_endpoint("w"), keys.worker_signals("w")]}
    writers["router"] = [keys.router_lanes("r")]
    writers["control"] = [keys.config]
    for writer, names in writers.items():
        assert all(name.startswith(f"ss:llm/llama/{writer}/") for name in names)


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "-a", "a*", "x" * 64])
def test_names_that_could_widen_an_access_pattern_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="DNS label"):
        Keyspace("llm", name)


def test_every_error_is_retryable_or_permanent_and_comes_back_from_the_wire_as_itself() -> None:
    for kind in ALL_ERRORS:
        assert issubclass(kind, Retryable) != issubclass(kind, Permanent)
        assert type(from_wire(kind.code, "ANY", "m", kind=kind.__name__)) is kind
    assert isinstance(from_wire("UNAVAILABLE", "", "m"), Retryable)
