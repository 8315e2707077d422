"""What the worker says at start-up about a vLLM that it was not written for; nothing here imports vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.worker.pipeserve import compat

# Names of the standard library stand in for vLLM's: what `check` does with a name is the same.
HERE: dict[str, Any] = {
    "_NAMES": ("json:dumps", "json:JSONDecoder.decode"),
    "_PARAMETERS": {"json:dumps": ("obj", "indent")},
    "_ATTRIBUTES": {"json:JSONDecoder.__init__": ("strict", "parse_float")},
}


@pytest.fixture(autouse=True)
def vllm_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda: compat.SUPPORTED[-1])
    for name, value in HERE.items():
        monkeypatch.setattr(compat, name, value)


def test_a_vllm_with_every_name_is_taken() -> None:
    compat.check()


def test_another_version_is_refused_and_the_supported_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda: "0.31.0")
    with pytest.raises(compat.UnsupportedVllm) as raised:
        compat.check()
    assert str(raised.value) == f"vLLM 0.31.0 is not supported; install one of {', '.join(compat.SUPPORTED)}"


# name: (the table, what it has too many, how it is named)
MISSING: dict[str, tuple[str, Any, str]] = {
    "a name": ("_NAMES", (*HERE["_NAMES"], "json:absent"), "json:absent"),
    "a module": ("_NAMES", (*HERE["_NAMES"], "json.absent:dumps"), "json.absent:dumps"),
    "a parameter": ("_PARAMETERS", {"json:dumps": ("obj", "absent")}, "json:dumps(absent)"),
    "a function with its parameters": ("_PARAMETERS", {"json:absent": ("obj",)}, "json:absent(obj)"),
    "an attribute": ("_ATTRIBUTES", {"json:JSONDecoder.__init__": ("strict", "absent")}, "json:JSONDecoder.absent"),
}


@pytest.mark.parametrize(("table", "names", "said"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_named(table: str, names: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, table, names)
    with pytest.raises(compat.UnsupportedVllm) as raised:
        compat.check()
    assert str(raised.value).startswith(f"vLLM {compat.SUPPORTED[-1]} lacks {said}; reinstall it")
