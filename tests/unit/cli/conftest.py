"""StreamPairs for the tests of the command line: a small valid one, and edits of it by dotted YAML paths."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from streamserve.contract.streampair import StreamPair

BASE: dict[str, Any] = {
    "apiVersion": "streamserve.io/v1alpha1",
    "kind": "StreamPair",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"name": "org/target"},
        "engine": {"kind": "Vllm", "args": {"max-model-len": "2048"}},
        "lanes": 2,
        "speculation": {
            "method": "DraftModel",
            "draft": {"name": "org/draft"},
            "maxDepth": 6,
            "depth": {"min": 1, "max": 6},
        },
        "update": {"drainSeconds": 5},
    },
}

MakePair = Callable[..., StreamPair]


@pytest.fixture(scope="session")
def make_pair() -> MakePair:
    """`make_pair({"spec.lanes": 3})`: the base with values set; None removes a key."""

    def make(edits: dict[str, Any] | None = None) -> StreamPair:
        found = copy.deepcopy(BASE)
        for path, value in (edits or {}).items():
            *parents, last = path.split(".")
            node = found
            for part in parents:
                node = node.setdefault(part, {})
            if value is None:
                node.pop(last, None)
            else:
                node[last] = value
        return StreamPair.model_validate(found, by_alias=True, by_name=False)

    return make
