"""What can change without a restart, and how a change is proven.

A configuration is identified by (uid, generation, step): the StreamPair's uid, its metadata.generation, and the
writer's counter within a generation. A component is started for one uid and applies only a higher (generation, step);
it echoes what it has applied in its signals. Everything here is hot; cold settings are in the pod's command line.

The wire form is JSON with a version, written by one writer (the operator, or `streamserve up`) to the ConfigMap or
file (durable) and to Redis (fast). A reader that cannot use it keeps what it has and says why.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamserve.contract import json_form

VERSION: Final = 1
MAX_BYTES: Final = 262_144
MAX_DEPTH: Final = 16


class ConfigError(ValueError):
    """The bytes are no configuration that this component can use. The message says which field and why."""


class DepthPolicyName(StrEnum):
    GOODPUT = "Goodput"
    FIXED = "Fixed"
    OFF = "Off"


class RoutingPolicy(StrEnum):
    FLOW_GUARD = "FlowGuard"
    ROUND_ROBIN = "RoundRobin"
    LEAST_REQUEST = "LeastRequest"


class CrossLane(StrEnum):
    NEVER = "Never"
    WHEN_NEEDED = "WhenNeeded"


class FailurePolicy(StrEnum):
    STRICT = "Strict"
    DEGRADE = "Degrade"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConfigId(_Frozen):
    """Which configuration: of which StreamPair, which generation, which step within it."""

    uid: Annotated[str, Field(min_length=1, max_length=64)]
    generation: Annotated[int, Field(ge=0, lt=2**63)]
    step: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def order(self) -> tuple[int, int]:
        return (self.generation, self.step)

    def supersedes(self, applied: ConfigId | None) -> bool:
        """True when this may replace what is applied: same StreamPair, and strictly later."""
        return applied is None or (self.uid == applied.uid and self.order > applied.order)


class SpeculationConfig(_Frozen):
    """Bounds for the local loop that decides the depth at every step; the control plane never sends the depth."""

    policy: DepthPolicyName = DepthPolicyName.GOODPUT
    min_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 0
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 0
    fixed_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 0
    inter_token_latency_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    probe_percent: Annotated[int, Field(ge=0, le=50)] = 2

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_depth > self.max_depth:
            raise ValueError(f"min_depth {self.min_depth} is above max_depth {self.max_depth}")
        return self


class Canary(_Frozen):
    """Lanes that try another speculation setting, while all others keep the configuration's own."""

    lanes: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], Field(min_length=1, max_length=64)]
    speculation: SpeculationConfig


class Slo(_Frozen):
    ttft_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 1_000
    tpot_ms: Annotated[int, Field(ge=1, le=600_000)] = 50


class RoutingWeights(_Frozen):
    """Percent of each term of the cost; 100 is neutral, for every term is already in seconds."""

    prefill_queue: Annotated[int, Field(ge=0, le=1_000)] = 100
    transfer: Annotated[int, Field(ge=0, le=1_000)] = 100
    decode_step: Annotated[int, Field(ge=0, le=1_000)] = 100
    kv_pressure: Annotated[int, Field(ge=0, le=1_000)] = 100
    slo: Annotated[int, Field(ge=0, le=1_000)] = 100


class RoutingConfig(_Frozen):
    policy: RoutingPolicy = RoutingPolicy.FLOW_GUARD
    weights_percent: RoutingWeights = RoutingWeights()
    local_prefill_max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    cross_lane: CrossLane = CrossLane.WHEN_NEEDED
    signal_trust_ms: Annotated[int, Field(ge=100, le=60_000)] = 1_000


class AdmissionConfig(_Frozen):
    max_queued_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 1_024
    max_queued_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] = 4_000_000
    max_queue_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 30_000


class RuntimeConfig(_Frozen):
    """Everything hot, whole: a reader never merges."""

    id: ConfigId
    served_names: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=16)] = ()
    speculation: SpeculationConfig = SpeculationConfig()
    canary: Canary | None = None
    slo: Slo = Slo()
    workload_slos: Annotated[dict[Annotated[str, Field(max_length=32)], Slo], Field(max_length=64)] = {}
    routing: RoutingConfig = RoutingConfig()
    admission: AdmissionConfig = AdmissionConfig()
    failure_policy: FailurePolicy = FailurePolicy.DEGRADE

    def for_lane(self, lane: str) -> RuntimeConfig:
        """As the workers of this lane obey it. Everybody reads one document, so one identity proves both arms."""
        if self.canary is None:
            return self
        own = self.canary.speculation if lane in self.canary.lanes else self.speculation
        return self.model_copy(update={"speculation": own, "canary": None})

    def slo_of(self, workload: str) -> Slo:
        return self.workload_slos.get(workload, self.slo)


class _Envelope(_Frozen):
    version: int
    config: RuntimeConfig


def encode(config: RuntimeConfig) -> bytes:
    """The wire form: JSON in UTF-8, at most MAX_BYTES. Without a canary it has no such field."""
    return _Envelope(version=VERSION, config=config).model_dump_json(exclude_none=True).encode()


def decode(data: bytes | str) -> RuntimeConfig:
    """The configuration in `data`. Raises ConfigError with a readable reason, and nothing else."""
    envelope = json_form.read(_Envelope, data, max_bytes=MAX_BYTES, what="a configuration", error=ConfigError)
    if envelope.version != VERSION:
        raise ConfigError(f"version {envelope.version} is not {VERSION}: upgrade the older component first")
    return envelope.config
