"""Every rule of the CRD is needed: where one is taken out, a bad object of the table gets through.

Each rule has a field and a message of its own, so a case's verdict on one does not depend on the others. Rules are
therefore taken out several at a time: those that are out must be silent, and all the others must still speak.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.api_server import ApiServer
from tests.support.processes import wait_until
from tests.support.stream_pairs import (
    DRY_RUN,
    PAIRS,
    SCALER,
    SCALERS,
    TABLE,
    Cause,
    causes,
    create,
    document,
    findings,
    is_at,
    merged,
)

from streamserve.contract.streampair.crd import definitions, every_rule, placed_rules
from streamserve.contract.streampair.crd.validations import Placed, look_up

RULES = list(every_rule())
BATCHES = 6
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Witness:
    """A bad case, and the one thing that the API server says to it because of the rule."""

    case: str
    cause: Cause


@pytest.fixture(scope="module")
def witnesses(server: ApiServer) -> dict[int, Witness]:
    """For each rule, by its number, the first case that only this rule refuses at this field in these words."""
    found: dict[int, Witness] = {}
    for name, case in TABLE["bad"].items():
        broken, said = findings(case), causes(create(server, case))
        for number, rule in enumerate(RULES):
            for cause in said:
                if number not in found and _speaks(rule, cause, broken):
                    found[number] = Witness(name, cause)
    return found


def _speaks(rule: Placed, cause: Cause, broken: list[Any]) -> bool:
    place = ".".join(str(part) for part in rule.node).replace(".[]", "[]") + rule.entry.get("fieldPath", "")
    shown = cause.field
    for digit in "0123456789":
        shown = shown.replace(f"[{digit}]", "[]")
    if shown != place.lstrip("."):
        return False
    return any(
        each.rule == rule.id and each.message == cause.message and is_at(cause.field, str(each).split(": ")[0])
        for each in broken
    )


def test_every_rule_refuses_some_object_of_the_table(witnesses: dict[int, Witness]) -> None:
    assert [(rule.id, rule.node, rule.entry) for number, rule in enumerate(RULES) if number not in witnesses] == []


def test_no_two_rules_say_the_same_at_the_same_field(witnesses: dict[int, Witness]) -> None:
    assert len({(w.case, w.cause) for w in witnesses.values()}) == len(witnesses)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_rule_that_is_taken_out_lets_its_object_through(
    server: ApiServer, witnesses: dict[int, Witness], batch: int
) -> None:
    out = [number for number in witnesses if number % BATCHES == batch]
    complete = definitions()["streampairs"]
    try:
        server.install(_without([RULES[number] for number in out]))
        probe = witnesses[out[0]]
        wait_until(
            lambda: probe.cause not in causes(create(server, TABLE["bad"][probe.case])),
            seconds=SETTLE_SECONDS,
            what="the API server uses the changed CRD",
        )
        still = {number for number, witness in witnesses.items() if _is_said(server, witness)}
        assert still == set(witnesses) - set(out)
    finally:
        server.install(complete)
        wait_until(
            lambda: _is_said(server, witnesses[out[0]]),
            seconds=SETTLE_SECONDS,
            what="the API server uses the whole CRD again",
        )


ROW = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
BAD_KEYS = {
    "key-length": ("k" * 400, "must have at most"),
    "key-not-empty": ("", "must not be empty"),
    "key-pattern": ("-x", '"-x" must be'),
}


@pytest.mark.parametrize("rule", BAD_KEYS)
def test_without_the_rules_of_keys_a_bad_key_gets_through(server: ApiServer, rule: str) -> None:
    out = [each for each in placed_rules()["streampairs"] if each.id == rule]
    key, words = BAD_KEYS[rule]

    def said() -> list[bool]:
        return [_place(each) in _fields(server, _with_key(each.node, key), words) for each in out]

    assert said() == [True] * len(out)
    try:
        server.install(_without(out))
        wait_until(lambda: not any(said()), seconds=SETTLE_SECONDS, what="bad keys get through")
    finally:
        server.install(definitions()["streampairs"])
        wait_until(lambda: all(said()), seconds=SETTLE_SECONDS, what="the whole CRD is used again")


def _place(rule: Placed) -> str:
    return ".".join(map(str, rule.node)).replace(".[]", "[0]")


def _fields(server: ApiServer, body: dict[str, Any], words: str) -> set[str]:
    """Where these words are said; a bad key may break other rules of its field as well."""
    found = causes(server.call("POST", PAIRS + DRY_RUN, body))
    return {cause.field for cause in found if cause.message.startswith(words)}


def _with_key(node: tuple[Any, ...], key: str) -> dict[str, Any]:
    value: Any = {key: "1"}
    for part in reversed(node):
        value = [{**ROW, **value}] if part == "[]" else {part: value}
    body: dict[str, Any] = merged(document({}), value)
    return body


EDITS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "streampairs": (PAIRS, "llama", document({}), {"spec": {"model": {"name": "another"}}}),
    "streampairscalers": (SCALERS, "llama-decode", SCALER, {"spec": {"role": "Prefill", "pairName": "other"}}),
}


@pytest.mark.parametrize("name", EDITS)
def test_without_its_transition_rules_a_fixed_field_can_be_changed(server: ApiServer, name: str) -> None:
    path, object_name, first, change = EDITS[name]
    out = [each for each in placed_rules()[name] if each.id in ("fixed", "scaler-name")]
    made = server.call("POST", path, first)
    assert made.ok, made.body

    def refused() -> bool:
        return not server.call("PUT", f"{path}/{object_name}{DRY_RUN}", merged(made.body, change)).ok

    assert refused()
    try:
        server.install(_without(out, name))
        wait_until(lambda: not refused(), seconds=SETTLE_SECONDS, what="the edit gets through")
    finally:
        server.install(definitions()[name])
        wait_until(refused, seconds=SETTLE_SECONDS, what="the whole CRD is used again")
        server.call("DELETE", f"{path}/{object_name}")


def _is_said(server: ApiServer, witness: Witness) -> bool:
    return witness.cause in causes(create(server, TABLE["bad"][witness.case]))


def _without(removed: list[Placed], name: str = "streampairs") -> dict[str, Any]:
    definition = definitions()[name]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for rule in removed:
        node = look_up(schema, rule.node)
        node["x-kubernetes-validations"].remove(rule.entry)
        if not node["x-kubernetes-validations"]:
            del node["x-kubernetes-validations"]
    return definition
