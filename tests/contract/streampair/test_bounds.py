"""The settings list and the models say the same: every bound in the list is the bound that is enforced."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from streamserve.contract.streampair import Setting, StreamPair, settings

NUMBERS = [setting for setting in settings() if setting.type == "integer" and ".." in setting.bounds]
ENUMS = [setting for setting in settings() if setting.type == "enum"]

ROWS: dict[str, dict[str, Any]] = {
    "staticTable": {"maxBatch": 1, "depth": 1},
    "workloads": {"name": "code"},
    "tenants": {"name": "a", "tokensPerSecond": 1, "burstTokens": 1},
    "tolerations": {},
    "topologySpreadConstraints": {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
    "matchExpressions": {"key": "a", "operator": "Exists"},
    "volumeMounts": {"name": "a", "mountPath": "/a"},
    "env": {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
}


def accepts(setting: Setting, value: object) -> bool:
    """Whether the models take this value at the setting's place."""
    document: dict[str, Any] = {"metadata": {"name": "a"}, "spec": {"model": {"name": "m"}}}
    node: Any = document
    parts = setting.path.split(".")
    for part in parts[:-1]:
        name = part.removesuffix("[]")
        if part.endswith("[]"):
            row = copy.deepcopy(ROWS[name])
            node[name] = [row]
            node = row
        else:
            node = node.setdefault(name, {})
    node[parts[-1]] = value
    try:
        StreamPair.model_validate(document, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.path)
def test_a_number_is_taken_up_to_its_bounds_and_no_further(setting: Setting) -> None:
    low, high = map(int, setting.bounds.split(".."))
    assert [accepts(setting, value) for value in (low - 1, low, high, high + 1)] == [False, True, True, False]
    assert not accepts(setting, str(low))
    assert not accepts(setting, True)
    assert not accepts(setting, float(low))


@pytest.mark.parametrize("setting", ENUMS, ids=lambda setting: setting.path)
def test_an_enum_takes_its_words_and_no_others(setting: Setting) -> None:
    for word in setting.bounds.split(", "):
        assert accepts(setting, word)
        assert not accepts(setting, word.swapcase())
    assert not accepts(setting, "")


def test_every_text_and_list_has_a_bound() -> None:
    open_ended = [s.path for s in settings() if s.type not in ("boolean", "object") and not s.bounds]
    assert open_ended == []
