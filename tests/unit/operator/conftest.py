"""StreamPairs as the API server hands them out, and the site that all tests of the operator run on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from streamserve.operator.site import Site

Body = dict[str, Any]
MakeBody = Callable[..., Body]
UID = "5f0c7a52-0000-4000-8000-000000000001"


@pytest.fixture(scope="session")
def site() -> Site:
    return Site(worker_image="streamserve/worker:0.1.0", router_image="streamserve/router:0.1.0")


@pytest.fixture(scope="session")
def read_pair() -> Callable[[Path], Body]:
    def read(path: Path) -> Body:
        body: Body = YAML(typ="safe").load(path)
        body["metadata"] |= {"uid": UID, "generation": 1}
        return body

    return read


@pytest.fixture(scope="session")
def make_body(read_pair: Callable[[Path], Body]) -> MakeBody:
    """`make_body({"lanes": 3}, generation=2)`: pairs/simulator.yaml with fields of its spec set; None removes one."""
    base = read_pair(Path(__file__).parent / "pairs" / "simulator.yaml")

    def make(edits: dict[str, Any] | None = None, generation: int = 1, uid: str = UID) -> Body:
        body = copy.deepcopy(base)
        body["metadata"] |= {"uid": uid, "generation": generation}
        for path, value in (edits or {}).items():
            *parents, last = path.split(".")
            node = body["spec"]
            for part in parents:
                node = node.setdefault(part, {})
            if value is None:
                node.pop(last, None)
            else:
                node[last] = value
        return body

    return make
