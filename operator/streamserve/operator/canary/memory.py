"""What is known between two reconciles, kept in the pair's ConfigMap: the configuration, and where its canary stands.

    config.json                             the RuntimeConfig as last written: `speculation` is what all but the canary
                                            lanes obey, `canary` what those try
    streamserve.io/speculation-rollout      annotation: Holding since when, or RolledBack and why; absent: Settled

Both are in one object, so one write changes both or neither, and an operator that restarts in the middle of a hold
goes on with it. The evidence is not ours to keep: it is in the routers' records.

A canary is a question: this speculation, under these rules, on pods of this revision. `question` is its fingerprint.
A question is asked once: a new generation that asks the same (an autoscaler has changed the lanes) neither restarts
its hold nor asks again for what was refused. Another speculation, other rules or other pods are another question.

A ConfigMap that somebody has edited by hand is believed as far as it makes sense: without a readable annotation a
canary is asked anew, without a readable configuration there is no memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from streamserve.contract import runtime_config
from streamserve.contract.runtime_config import ConfigError, RuntimeConfig, SpeculationConfig
from streamserve.contract.streampair.policies import Rollout

ANNOTATION: Final = "streamserve.io/speculation-rollout"
MAX_DETAIL_LENGTH: Final = 512


class RollBackReason(StrEnum):
    WORSE = "CanaryWorse"
    INCONCLUSIVE = "CanaryInconclusive"


@dataclass(frozen=True, slots=True)
class Settled:
    """Every lane obeys the same, and that is what was asked for."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Canary lanes try it. `since` is when the hold began, in seconds since the epoch; `first` the (generation, step)
    with which it began."""

    question: str
    since_seconds: float
    first: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RolledBack:
    question: str
    reason: RollBackReason
    detail: str


State = Settled | Holding | RolledBack


@dataclass(frozen=True, slots=True)
class Memory:
    config: RuntimeConfig
    state: State


def question(tried: SpeculationConfig, rules: Rollout, revision: str) -> str:
    asked = json.dumps([tried.model_dump(mode="json"), rules.model_dump(mode="json"), revision], sort_keys=True)
    return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()


def notes_of(state: State) -> dict[str, str]:
    """Of the ConfigMap, beside the configuration."""
    match state:
        case Settled():
            return {}
        case Holding(asked, since, first):
            said: dict[str, Any] = {"state": "Holding", "question": asked, "sinceSeconds": since, "first": list(first)}
        case RolledBack(asked, reason, detail):
            said = {"state": "RolledBack", "question": asked, "reason": reason.value, "detail": detail}
    return {ANNOTATION: json.dumps(said)}


def recall(data: str | bytes | None, notes: Mapping[str, str]) -> Memory | None:
    """`data`: the configuration as it was written, in the ConfigMap or, where that is gone, in Redis. Never raises."""
    if data is None:
        return None
    try:
        config = runtime_config.decode(data)
    except ConfigError:
        return None
    state = _state(notes.get(ANNOTATION, ""))
    if isinstance(state, Holding) != (config.canary is not None):
        state = Settled()
    return Memory(config, state)


def _state(note: str) -> State:
    try:
        said = json.loads(note)
        if said["state"] == "Holding":
            generation, step = said["first"]
            since = float(said["sinceSeconds"])
            if not math.isfinite(since):
                return Settled()
            return Holding(str(said["question"]), since, (int(generation), int(step)))
        if said["state"] == "RolledBack":
            reason = RollBackReason(said["reason"])
            return RolledBack(str(said["question"]), reason, str(said["detail"])[:MAX_DETAIL_LENGTH])
    except (ValueError, TypeError, KeyError, OverflowError):
        return Settled()
    return Settled()
