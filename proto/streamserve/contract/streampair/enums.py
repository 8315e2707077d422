"""The StreamPair's enumerations. The strings are the API: they never change."""

from enum import StrEnum


class EngineKind(StrEnum):
    VLLM = "Vllm"
    SIMULATOR = "Simulator"


class ScalingMode(StrEnum):
    FIXED = "Fixed"
    EXTERNAL = "External"


class Placement(StrEnum):
    SAME_NODE = "SameNode"
    SAME_TOPOLOGY = "SameTopology"
    ANY = "Any"


class Method(StrEnum):
    """How draft tokens are made."""

    NONE = "None"
    DRAFT_MODEL = "DraftModel"
    EAGLE = "Eagle"
    EAGLE3 = "Eagle3"
    MTP = "Mtp"
    NGRAM = "Ngram"
    SUFFIX = "Suffix"
    MEDUSA = "Medusa"


class DepthPolicy(StrEnum):
    """The law that chooses the depth of each step."""

    GOODPUT = "Goodput"
    STATIC = "Static"
    FIXED = "Fixed"
    EMA = "Ema"
    PAPER_SHAPE = "PaperShape"
    OFF = "Off"


class RoutingPolicy(StrEnum):
    FLOW_GUARD = "FlowGuard"
    PAPER_SHAPE = "PaperShape"
    ROUND_ROBIN = "RoundRobin"
    LEAST_REQUEST = "LeastRequest"
    POWER_OF_TWO = "PowerOfTwo"


class CrossLane(StrEnum):
    NEVER = "Never"
    WHEN_NEEDED = "WhenNeeded"


class FailurePolicy(StrEnum):
    STRICT = "Strict"
    DEGRADE = "Degrade"


METHODS_WITH_DRAFT = frozenset({Method.DRAFT_MODEL, Method.EAGLE, Method.EAGLE3, Method.MEDUSA})
"""These name a second model; Mtp may (its heads usually sit in the target's own checkpoint)."""

METHODS_WITHOUT_DRAFT = frozenset({Method.NONE, Method.NGRAM, Method.SUFFIX})

METHODS_OF_CONSTANT_DEPTH = frozenset({Method.SUFFIX, Method.MEDUSA})
"""vLLM's proposers for these crash when the depth changes from step to step."""

ADAPTIVE_POLICIES = frozenset({DepthPolicy.GOODPUT, DepthPolicy.STATIC, DepthPolicy.EMA, DepthPolicy.PAPER_SHAPE})
"""Policies under which the depth changes from step to step."""
