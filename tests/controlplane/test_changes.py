"""Edits of an object that exists: fixed fields stay, the rest may change, `/scale` and `/status` work."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.api_server import Answer, ApiServer
from tests.support.stream_pairs import DRY_RUN, PAIRS, SCALER, SCALERS, TABLE, Cause, causes, document, merged

from streamserve.contract.streampair import StreamPair, classify

FIXED = "cannot be changed: create another StreamPair"


@pytest.fixture
def pair(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A plain one; of the model that the parameter names, if any."""
    made = server.call("POST", PAIRS, document({"spec": {"model": request.param}} if hasattr(request, "param") else {}))
    assert made.ok, made.body
    yield made.body
    server.call("DELETE", f"{PAIRS}/llama")


def of_its_model() -> list[Any]:
    """Every good case, and the one field of its model that a plain pair has to begin with: it cannot be changed."""
    cases = {name: case for name, case in TABLE["good"].items() if "metadata" not in case}
    models = {name: case.get("spec", {}).get("model", {}) for name, case in cases.items()}
    return [
        pytest.param({key: model[key] for key in model if key == "name"}, name, id=name)
        for name, model in models.items()
    ]


@pytest.fixture
def scaler(server: ApiServer) -> Iterator[dict[str, Any]]:
    made = server.call("POST", SCALERS, SCALER)
    assert made.ok, made.body
    yield made.body
    server.call("DELETE", f"{SCALERS}/llama-decode")


def put(server: ApiServer, old: dict[str, Any], change: dict[str, Any]) -> Answer:
    name = old["metadata"]["name"]
    path = PAIRS if old["kind"] == "StreamPair" else SCALERS
    return server.call("PUT", f"{path}/{name}{DRY_RUN}", merged(old, change))


def patch(server: ApiServer, path: str, change: Any, kind: str = "merge") -> Answer:
    return server.call("PATCH", path + DRY_RUN, change, content=f"application/{kind}-patch+json")


@pytest.mark.parametrize(("pair", "name"), of_its_model(), indirect=["pair"])
def test_every_good_object_may_become_of_a_plain_one(server: ApiServer, pair: dict[str, Any], name: str) -> None:
    answer = put(server, pair, {"spec": TABLE["good"][name].get("spec", {})})
    assert answer.ok, answer.body


@pytest.mark.parametrize("rule", sorted({case["rule"] for case in TABLE["bad"].values() if "metadata" not in case}))
def test_a_bad_edit_of_a_good_object_is_refused_too(server: ApiServer, pair: dict[str, Any], rule: str) -> None:
    case = next(case for case in TABLE["bad"].values() if case["rule"] == rule and "metadata" not in case)
    assert put(server, pair, {"spec": case["spec"]}).status == 422


def test_the_model_cannot_be_changed(server: ApiServer, pair: dict[str, Any]) -> None:
    change = {"spec": {"model": {"name": "another"}}}
    typed = [StreamPair.model_validate(each, by_alias=True, by_name=False) for each in (pair, merged(pair, change))]
    (fixed,) = classify(*typed).fixed
    assert fixed.path == "spec.model.name"
    assert causes(put(server, pair, change)) == {Cause("spec.model.name", FIXED)}


def test_the_model_cannot_be_removed_to_be_added_again(server: ApiServer, pair: dict[str, Any]) -> None:
    for path in (["model"], ["model", "name"]):
        change: Any = None
        for part in reversed(path):
            change = {part: change}
        answer = patch(server, f"{PAIRS}/llama", {"spec": change})
        assert answer.status == 422
        assert ".".join(["spec", *path]) in [field for field, _ in answer.causes]
    replaced = [{"op": "replace", "path": "/spec/model", "value": {"name": "another"}}]
    assert causes(patch(server, f"{PAIRS}/llama", replaced, "json")) == {Cause("spec.model.name", FIXED)}


def test_an_object_that_another_release_wrote_can_still_be_edited_elsewhere(server: ApiServer) -> None:
    assert server.call("POST", PAIRS, document({})).ok
    try:
        answer = patch(server, f"{PAIRS}/llama", {"metadata": {"labels": {"a": "b"}}})
        assert answer.ok, answer.body
        assert answer.body["spec"]["lanes"] == 1
    finally:
        server.call("DELETE", f"{PAIRS}/llama")


@pytest.mark.parametrize("change", [{"role": "Prefill"}, {"pairName": "other"}])
def test_a_scaler_stays_with_its_role_and_pair(
    server: ApiServer, scaler: dict[str, Any], change: dict[str, str]
) -> None:
    said = causes(put(server, scaler, {"spec": change}))
    (field,) = change
    assert Cause(f"spec.{field}", "cannot be changed: create another StreamPairScaler") in said


def test_a_scaler_is_named_after_its_pair_and_role(server: ApiServer) -> None:
    answer = server.call("POST", SCALERS + DRY_RUN, merged(SCALER, {"metadata": {"name": "other"}}))
    assert causes(answer) == {Cause("metadata.name", "must be llama-decode: one scaler for each role, named after it")}


@pytest.mark.parametrize(("kind", "name", "limit"), [("pair", "llama", 256), ("scaler", "llama-decode", 8)])
def test_scale_reads_and_writes_the_replicas_within_their_bounds(
    server: ApiServer, pair: dict[str, Any], scaler: dict[str, Any], kind: str, name: str, limit: int
) -> None:
    path = f"{PAIRS if kind == 'pair' else SCALERS}/{name}/scale"
    before = server.call("GET", path)
    assert before.body["spec"]["replicas"] == 1
    assert server.call("PUT", path, merged(before.body, {"spec": {"replicas": 3}})).ok
    assert server.call("GET", path).body["spec"]["replicas"] == 3
    now = server.call("GET", path).body
    assert server.call("PUT", path, merged(now, {"spec": {"replicas": limit + 1}})).status == 422


def test_a_pair_with_canaries_scales_to_one_lane_and_to_none(server: ApiServer, pair: dict[str, Any]) -> None:
    with_canaries = {"spec": {"lanes": 3, "speculation": {"rollout": {"canaryLanes": 2}}}}
    assert server.call("PATCH", f"{PAIRS}/llama", with_canaries, content="application/merge-patch+json").ok
    path = f"{PAIRS}/llama/scale"
    for lanes in (2, 1, 0):
        answer = server.call("PUT", path, merged(server.call("GET", path).body, {"spec": {"replicas": lanes}}))
        assert answer.ok, answer.body


def test_status_is_written_apart_from_the_spec_and_feeds_scale(server: ApiServer, pair: dict[str, Any]) -> None:
    status = {
        "lanes": 2,
        "selector": "streamserve.io/pair=llama",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "AllLanesReady",
                "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
                "observedGeneration": 1,
            }
        ],
    }
    change = {"spec": {"lanes": 7}, "status": status}
    answer = server.call("PATCH", f"{PAIRS}/llama/status", change, content="application/merge-patch+json")
    assert answer.ok, answer.body
    assert answer.body["status"] == status
    assert answer.body["spec"]["lanes"] == 1
    assert answer.body["metadata"]["generation"] == pair["metadata"]["generation"]
    assert server.call("GET", f"{PAIRS}/llama/scale").body["status"] == {
        "replicas": 2,
        "selector": "streamserve.io/pair=llama",
    }
