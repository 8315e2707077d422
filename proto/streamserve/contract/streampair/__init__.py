"""The StreamPair, typed: what a user writes, what is wrong with it, and what an edit of it takes.

    load(text)                    → StreamPair | list[Problem]      never raises
    load_file(path)               → the same, model folders beside the file resolved
    classify(old, new)            → Changes: hot, cold, scale, fixed
    settings()                    → every field with lifecycle, type, bounds, default, reason

Fields and bounds are in `workers`, `policies` and `resource`; rules between fields in `rules`; what is not in this
release in `releases`; places in the file in `nodes`.
"""

from streamserve.contract.streampair.changes import Change, Changes, classify, leaves
from streamserve.contract.streampair.enums import (
    CrossLane,
    DepthPolicy,
    EngineKind,
    FailurePolicy,
    Method,
    Placement,
    RoutingPolicy,
    ScalingMode,
)
from streamserve.contract.streampair.fields import Lifecycle
from streamserve.contract.streampair.loader import Loaded, load, read
from streamserve.contract.streampair.paths import cluster_only, load_file, read_file, resolve_model_paths
from streamserve.contract.streampair.problems import Problem
from streamserve.contract.streampair.resource import API_VERSION, KIND, StreamPair, StreamPairSpec
from streamserve.contract.streampair.schema import Setting, settings
from streamserve.contract.streampair.workers import effective_args

__all__ = [
    "API_VERSION",
    "KIND",
    "Change",
    "Changes",
    "CrossLane",
    "DepthPolicy",
    "EngineKind",
    "FailurePolicy",
    "Lifecycle",
    "Loaded",
    "Method",
    "Placement",
    "Problem",
    "RoutingPolicy",
    "ScalingMode",
    "Setting",
    "StreamPair",
    "StreamPairSpec",
    "classify",
    "cluster_only",
    "effective_args",
    "leaves",
    "load",
    "load_file",
    "read",
    "read_file",
    "resolve_model_paths",
    "settings",
]
