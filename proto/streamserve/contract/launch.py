"""How a lane's worker is named, and which engine its command line asks for: the same from `up` and from the operator.

Names are `lane-0` and `lane-0-prefill-0`; a worker's name is its id in Redis, in signals and in every message. Where
it listens and who restarts it is the affair of the one who starts it.
"""

from __future__ import annotations

import json

from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import Method, StreamPairSpec, effective_args


def lane_name(lane: int) -> str:
    return f"lane-{lane}"


def worker_name(lane: int, slot: Slot) -> str:
    return f"{lane_name(lane)}-{slot.role}-{slot.index}"


def engine_arguments(spec: StreamPairSpec, role: str, *, model: str, draft: str | None) -> list[str]:
    """streamserve-worker's flags for this role's engine. `model` and `draft` as they are called where it runs."""
    flags = ["--role", role, "--engine", spec.engine.kind.value, "--model", model]
    if spec.speculation.method is not Method.NONE:
        flags += ["--method", spec.speculation.method.value, "--max-depth", str(spec.speculation.max_depth)]
    if draft is not None:
        flags += ["--draft", draft]
    if args := effective_args(spec.engine, spec.prefill if role == "prefill" else spec.decode):
        flags += ["--engine-args", json.dumps(args, sort_keys=True)]
    return flags
