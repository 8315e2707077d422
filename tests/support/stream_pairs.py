"""The table of good and bad StreamPairs, and what an API server says to one of them."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tests.support.api_server import Answer, ApiServer

from streamserve.contract.streampair import StreamPair, releases, rules
from streamserve.contract.streampair.rule import Finding

TABLE: dict[str, Any] = YAML(typ="safe").load(
    Path(__file__).resolve().parents[1] / "contract" / "streampair" / "cases.yaml"
)
PAIRS = "/apis/streamserve.io/v1alpha1/namespaces/default/streampairs"
SCALERS = "/apis/streamserve.io/v1alpha1/namespaces/default/streampairscalers"
DRY_RUN = "?dryRun=All&fieldValidation=Strict"

SCALER: dict[str, Any] = {
    "apiVersion": "streamserve.io/v1alpha1",
    "kind": "StreamPairScaler",
    "metadata": {"name": "llama-decode"},
    "spec": {"pairName": "llama", "role": "Decode"},
}

_OPENING = re.compile(r'^Invalid value(: ("[^"]*"|\S+))?: ', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that an API server refuses: the field, and the message without Kubernetes' own opening words."""

    field: str
    message: str


def merged(base: Any, change: Any) -> Any:
    """`base` with `change` over it, mapping by mapping."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return copy.deepcopy(change)
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


def document(case: dict[str, Any]) -> dict[str, Any]:
    """The object of one case, as a user would write it."""
    result: dict[str, Any] = merged(TABLE["base"], {key: case[key] for key in ("metadata", "spec") if key in case})
    return result


def findings(case: dict[str, Any]) -> list[Finding]:
    """Every rule that the case breaks, by the Python predicates."""
    pair = StreamPair.model_validate(document(case), by_alias=True, by_name=False)
    return [*rules.check(pair), *releases.check(pair)]


def create(server: ApiServer, case: dict[str, Any]) -> Answer:
    """What a server-side dry run of `kubectl create` answers."""
    return server.call("POST", PAIRS + DRY_RUN, document(case))


def causes(answer: Answer) -> set[Cause]:
    return {Cause(field, _OPENING.sub("", message)) for field, message in answer.causes}


def is_at(field: str, path: str) -> bool:
    """Whether a finding at `path` is shown at `field`: the same, or the list or mapping that holds it."""
    return path == field or (path.startswith(field) and path[len(field)] in ".[")
