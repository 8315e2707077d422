"""Which flags a role's engine starts with: the shared ones, the role's own over them, and no switch both ways."""

import json

import pytest

from streamserve.contract.launch import engine_arguments
from streamserve.contract.streampair import StreamPairSpec

CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "a role's own value wins": (
        {"max-num-seqs": "8", "seed": "1"},
        {"max-num-seqs": "64"},
        {"max-num-seqs": "64", "seed": "1"},
    ),
    "a role turns on again what is off for both": (
        {"no-enable-prefix-caching": "true", "seed": "1"},
        {"enable-prefix-caching": "true"},
        {"enable-prefix-caching": "true", "seed": "1"},
    ),
    "a role turns off what is on for both": (
        {"enable-prefix-caching": ""},
        {"no-enable-prefix-caching": ""},
        {"no-enable-prefix-caching": ""},
    ),
    "a switch of another name stays": (
        {"no-enforce-eager": ""},
        {"enable-prefix-caching": ""},
        {"enable-prefix-caching": "", "no-enforce-eager": ""},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_engine_starts_with(name: str) -> None:
    shared, own, want = CASES[name]
    spec = StreamPairSpec.model_validate(
        {"model": {"name": "m"}, "engine": {"args": shared}, "decode": {"engine": {"args": own}}}
    )
    assert _given(spec, "decode") == want
    assert _given(spec, "prefill") == shared


def _given(spec: StreamPairSpec, role: str) -> dict[str, str]:
    arguments = engine_arguments(spec, role, model="m", draft=None)
    given: dict[str, str] = json.loads(arguments[arguments.index("--engine-args") + 1])
    return given
