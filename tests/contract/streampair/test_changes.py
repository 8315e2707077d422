"""What an edit takes: each changed leaf once, with its lifecycle, in a sentence."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.streampair import Lifecycle, StreamPair, classify, leaves
from streamserve.contract.streampair import settings as all_settings

EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "a depth bound": (
        {"speculation": {"depth": {"min": 1, "max": 6}}},
        {"speculation": {"depth": {"min": 0, "max": 6}}},
        ["spec.speculation.depth.min: 1 → 0 (hot: applied to what is running)"],
    ),
    "a lane more": ({"lanes": 2}, {"lanes": 3}, ["spec.lanes: 2 → 3 (scale: adds or removes workers)"]),
    "another engine": (
        {"engine": {"kind": "Vllm"}},
        {"engine": {"kind": "Simulator"}},
        ["spec.engine.kind: Vllm → Simulator (cold: replaces the lanes one after another)"],
    ),
    "another model": (
        {"model": {"name": "a"}},
        {"model": {"name": "b"}},
        ["spec.model.name: a → b (fixed: cannot be changed: create another StreamPair)"],
    ),
    "one flag of several": (
        {"engine": {"args": {"a": "1", "b": "2"}}},
        {"engine": {"args": {"a": "1", "b": "3"}}},
        ["spec.engine.args.b: 2 → 3 (cold: replaces the lanes one after another)"],
    ),
    "the first flag": (
        {},
        {"decode": {"engine": {"args": {"x": "1"}}}},
        ["spec.decode.engine.args.x: not set → 1 (cold: replaces the lanes one after another)"],
    ),
    "a draft": (
        {},
        {"speculation": {"draft": {"name": "d"}}},
        ["spec.speculation.draft.name: not set → d (cold: replaces the lanes one after another)"],
    ),
    "a source without fields": (
        {},
        {"model": {"name": "m", "source": {"hub": {}}}},
        ["spec.model.source.hub: not set → {} (cold: replaces the lanes one after another)"],
    ),
    "a row of a list": (
        {"slo": {"workloads": [{"name": "code"}]}},
        {"slo": {"workloads": [{"name": "code"}, {"name": "chat"}]}},
        ["spec.slo.workloads: [1 entry] → [2 entries] (hot: applied to what is running)"],
    ),
    "an environment variable, its value not shown": (
        {},
        {"prefill": {"template": {"env": [{"name": "TOKEN", "value": "secret"}]}}},
        ["spec.prefill.template.env: [] → [1 entry] (cold: replaces the lanes one after another)"],
    ),
    "a volume's field of another type": (
        {"decode": {"template": {"volumes": [{"name": "v", "csi": {"readOnly": 1}}]}}},
        {"decode": {"template": {"volumes": [{"name": "v", "csi": {"readOnly": True}}]}}},
        ["spec.decode.template.volumes: [1 entry] → [1 entry] (cold: replaces the lanes one after another)"],
    ),
    "a default written out": ({}, {"lanes": 1, "failurePolicy": "Degrade"}, []),
    "four kinds at once": (
        {},
        {"model": {"name": "b"}, "lanes": 2, "placement": "Any", "paused": True},
        [
            "spec.model.name: m → b (fixed: cannot be changed: create another StreamPair)",
            "spec.lanes: 1 → 2 (scale: adds or removes workers)",
            "spec.placement: SameNode → Any (cold: replaces the lanes one after another)",
            "spec.paused: false → true (hot: applied to what is running)",
        ],
    ),
}


def pair(spec: dict[str, Any], name: str = "llama") -> StreamPair:
    return StreamPair.model_validate({"metadata": {"name": name}, "spec": {"model": {"name": "m"}, **spec}})


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of(name: str) -> None:
    old, new, wanted = EDITS[name]
    assert [str(change) for change in classify(pair(old), pair(new))] == wanted


def test_another_name_is_another_stream_pair() -> None:
    assert [change.path for change in classify(pair({}, "a"), pair({}, "b")).fixed] == ["metadata.name"]


def test_labels_are_no_settings() -> None:
    labelled = StreamPair.model_validate(
        {"metadata": {"name": "llama", "labels": {"a": "b"}}, "spec": {"model": {"name": "m"}}}
    )
    assert not classify(pair({}), labelled)


def test_every_setting_has_a_lifecycle_and_a_reason() -> None:
    for setting in all_settings():
        assert setting.lifecycle in Lifecycle, setting.path
        assert len(setting.why) > 10, setting.path


json_values = st.recursive(
    st.booleans() | st.integers(0, 2) | st.text("ab", max_size=2),
    lambda inner: (
        st.dictionaries(st.text("xy", min_size=1, max_size=1), inner, max_size=2) | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)
names = st.text("ab-", min_size=1, max_size=3).map(lambda text: f"a{text}a")
specs = st.fixed_dictionaries(
    {},
    optional={
        "lanes": st.integers(0, 4),
        "engine": st.fixed_dictionaries(
            {}, optional={"args": st.dictionaries(names, st.text("01", max_size=2), max_size=3)}
        ),
        "speculation": st.fixed_dictionaries(
            {},
            optional={
                "draft": st.fixed_dictionaries({"name": names}),
                "maxDepth": st.integers(1, 16),
                "depth": st.fixed_dictionaries({}, optional={"min": st.integers(0, 3), "max": st.integers(3, 6)}),
            },
        ),
        "slo": st.fixed_dictionaries({}, optional={"workloads": st.lists(st.fixed_dictionaries({"name": names}))}),
        "decode": st.fixed_dictionaries(
            {},
            optional={
                "template": st.fixed_dictionaries(
                    {}, optional={"affinity": st.dictionaries(st.sampled_from("xy"), json_values, max_size=2)}
                )
            },
        ),
        "paused": st.booleans(),
    },
)


@settings(deadline=None)
@given(specs)
def test_a_stream_pair_does_not_differ_from_itself(spec: dict[str, Any]) -> None:
    assert not classify(pair(spec), pair(spec))


@settings(deadline=None)
@given(specs, specs)
def test_each_changed_leaf_is_listed_once_and_the_way_back_lists_the_same(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    there, back = classify(pair(old), pair(new)), classify(pair(new), pair(old))
    paths = [change.path for change in there]
    assert len(paths) == len(set(paths))
    assert {(c.path, c.kind, repr(c.old), repr(c.new)) for c in there} == {
        (c.path, c.kind, repr(c.new), repr(c.old)) for c in back
    }
    assert len(there) == len(there.hot) + len(there.cold) + len(there.scale) + len(there.fixed)


@settings(deadline=None)
@given(specs, specs)
def test_no_change_means_equal_specs(old: dict[str, Any], new: dict[str, Any]) -> None:
    if not classify(pair(old), pair(new)):
        assert {path: leaf.value for path, leaf in leaves(pair(old)).items()} == {
            path: leaf.value for path, leaf in leaves(pair(new)).items()
        }
