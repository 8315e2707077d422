"""The part of the spec that says how it behaves: speculation, targets, routing, admission, updates."""

from typing import Annotated

from pydantic import Field

from streamserve.contract.streampair.enums import CrossLane, DepthPolicy, Method, RoutingPolicy
from streamserve.contract.streampair.fields import (
    Cold,
    Hot,
    Int,
    ModelName,
    OptionalDnsLabel,
    Scale,
    SpecModel,
    TenantName,
    WorkloadName,
)
from streamserve.contract.streampair.workers import Source, Template

MAX_DEPTH = 16
DEFAULT_FIXED_DEPTH = 3
DEFAULT_MAX_UNAVAILABLE = 1


class Draft(SpecModel):
    name: Annotated[
        ModelName,
        Cold(),
        Field(description="draft model: hub id, path in the pod, or folder beside this file"),
    ]
    source: Annotated[
        Source | None, Cold(), Field(description="where its weights come from; default: as spec.model.source")
    ] = None


class Depth(SpecModel):
    min: Annotated[Int, Hot(), Field(ge=0, le=MAX_DEPTH, description="the policy never drafts fewer tokens")] = 0
    max: Annotated[Int | None, Hot(), Field(ge=0, le=MAX_DEPTH, description="nor more; default: maxDepth")] = None
    fixed: Annotated[
        Int | None,
        Hot(),
        Field(ge=0, le=MAX_DEPTH, description="depth under policy Fixed; default: 3, moved into min..max"),
    ] = None


class StaticStep(SpecModel):
    max_batch: Annotated[Int, Hot(), Field(ge=1, le=65536, description="largest batch this row is for")]
    depth: Annotated[Int, Hot(), Field(ge=0, le=MAX_DEPTH, description="depth up to that batch")]


class Rollout(SpecModel):
    canary_lanes: Annotated[
        Int,
        Hot(),
        Field(
            ge=0,
            le=8,
            description="lanes that try a new speculation setting first, always fewer than there are; 0 = all at once",
        ),
    ] = 0
    hold_seconds: Annotated[
        Int, Hot(), Field(ge=0, le=86400, description="how long canaries run before the others follow")
    ] = 120
    min_requests: Annotated[
        Int, Hot(), Field(ge=0, le=1_000_000, description="evidence wanted before a canary is judged")
    ] = 200
    rollback_below_percent: Annotated[
        Int,
        Hot(),
        Field(ge=1, le=100, description="roll back when goodput falls below this share of the others'"),
    ] = 90


class Speculation(SpecModel):
    method: Annotated[
        Method, Cold(), Field(description="how draft tokens are made; the same on both roles of a lane")
    ] = Method.NONE
    draft: Annotated[Draft | None, Cold(), Field(description="the draft model, for the methods that have one")] = None
    max_depth: Annotated[
        Int, Cold(), Field(ge=1, le=MAX_DEPTH, description="buffers and graphs are built for this depth")
    ] = 6
    policy: Annotated[DepthPolicy, Hot(), Field(description="the law that chooses the depth of each step")] = (
        DepthPolicy.GOODPUT
    )
    depth: Depth = Field(default_factory=Depth, description="bounds of the depth, min ≤ max ≤ maxDepth")
    static_table: Annotated[
        tuple[StaticStep, ...],
        Hot(),
        Field(max_length=32, description="depth by batch size, for policy Static"),
    ] = ()
    inter_token_latency_milliseconds: Annotated[
        Int,
        Hot(),
        Field(ge=0, le=60_000, description="no step may be predicted to take longer; 0 = no bound"),
    ] = 0
    probe_percent: Annotated[
        Int, Hot(), Field(ge=0, le=50, description="share of steps that may explore another depth")
    ] = 2
    rollout: Rollout = Field(default_factory=Rollout, description="how a changed setting reaches the lanes")

    @property
    def depth_max(self) -> int:
        """`depth.max`, or `maxDepth` where it is not given."""
        return self.max_depth if self.depth.max is None else self.depth.max

    @property
    def depth_fixed(self) -> int:
        """`depth.fixed`, or 3 moved into the bounds where it is not given."""
        if self.depth.fixed is not None:
            return self.depth.fixed
        return max(self.depth.min, min(DEFAULT_FIXED_DEPTH, self.depth_max))


class Targets(SpecModel):
    ttft_milliseconds: Annotated[
        Int, Hot(), Field(ge=1, le=600_000, description="time to first token that counts as good")
    ] = 1000
    tpot_milliseconds: Annotated[
        Int, Hot(), Field(ge=1, le=60_000, description="time per later token that counts as good")
    ] = 50


class WorkloadTargets(SpecModel):
    name: Annotated[WorkloadName, Hot(), Field(description="value of the request field `workload` that picks this row")]
    ttft_milliseconds: Annotated[
        Int | None, Hot(), Field(ge=1, le=600_000, description="default: slo.default.ttftMilliseconds")
    ] = None
    tpot_milliseconds: Annotated[
        Int | None, Hot(), Field(ge=1, le=60_000, description="default: slo.default.tpotMilliseconds")
    ] = None


class Slo(SpecModel):
    default: Targets = Field(default_factory=Targets, description="for requests of no listed workload")
    workloads: Annotated[
        tuple[WorkloadTargets, ...], Hot(), Field(max_length=64, description="targets by workload")
    ] = ()

    def targets_for(self, workload: str) -> Targets:
        """The targets of a workload: its own row over the default, field by field."""
        for row in self.workloads:
            if row.name == workload:
                return Targets(
                    ttft_milliseconds=row.ttft_milliseconds or self.default.ttft_milliseconds,
                    tpot_milliseconds=row.tpot_milliseconds or self.default.tpot_milliseconds,
                )
        return self.default


class Weights(SpecModel):
    """Preferences between terms that are all in seconds: 100 takes a prediction as it is, 0 omits it."""

    prefill_queue: Annotated[
        Int, Hot(), Field(ge=0, le=1000, description="waiting and computing at the prefill worker")
    ] = 100
    transfer: Annotated[Int, Hot(), Field(ge=0, le=1000, description="moving the KV cache")] = 100
    decode_step: Annotated[Int, Hot(), Field(ge=0, le=1000, description="time per output token")] = 100
    kv_pressure: Annotated[Int, Hot(), Field(ge=0, le=1000, description="little KV room left at decode")] = 100
    slo: Annotated[Int, Hot(), Field(ge=0, le=1000, description="predicted miss of the targets")] = 100


class Routing(SpecModel):
    policy: Annotated[
        RoutingPolicy,
        Hot(),
        Field(description="how a lane is chosen; FlowGuard predicts, the others are baselines"),
    ] = RoutingPolicy.FLOW_GUARD
    weights_percent: Weights = Field(default_factory=Weights, description="preference between FlowGuard's terms")
    local_prefill_max_tokens: Annotated[
        Int,
        Hot(),
        Field(
            ge=0,
            le=1_000_000,
            description="prompts this short skip the remote prefill; 0 = only when it fails",
        ),
    ] = 0
    cross_lane: Annotated[
        CrossLane,
        Hot(),
        Field(description="may a prefill of one lane feed a decode of another, same revision"),
    ] = CrossLane.WHEN_NEEDED
    signal_trust_milliseconds: Annotated[
        Int,
        Hot(),
        Field(ge=100, le=60_000, description="time constant at which an old signal loses its weight"),
    ] = 1000


class Tenant(SpecModel):
    name: Annotated[TenantName, Hot(), Field(description="tenant as authentication names it")]
    tokens_per_second: Annotated[
        Int,
        Hot(),
        Field(ge=1, le=1_000_000_000, description="sustained rate, prompt and output tokens together"),
    ]
    burst_tokens: Annotated[
        Int, Hot(), Field(ge=1, le=1_000_000_000, description="what may be spent at once after a pause")
    ]
    weight: Annotated[Int, Hot(), Field(ge=1, le=1000, description="share of a full queue")] = 1
    priority: Annotated[Int, Hot(), Field(ge=-100, le=100, description="higher is served first")] = 0


class Admission(SpecModel):
    max_queued_requests: Annotated[
        Int, Hot(), Field(ge=1, le=1_000_000, description="requests waiting in one router before it sheds")
    ] = 1024
    max_queued_tokens: Annotated[
        Int,
        Hot(),
        Field(ge=1, le=1_000_000_000, description="prompt tokens waiting in one router before it sheds"),
    ] = 4_000_000
    max_queue_milliseconds: Annotated[
        Int, Hot(), Field(ge=1, le=3_600_000, description="longest wait before a request is shed")
    ] = 30_000
    tenants: Annotated[tuple[Tenant, ...], Hot(), Field(max_length=256, description="rates and shares by tenant")] = ()


class Router(SpecModel):
    replicas: Annotated[Int, Scale(), Field(ge=1, le=64, description="pods of this StreamPair's own router")] = 2
    shared: Annotated[
        OptionalDnsLabel,
        Cold(),
        Field(description="StreamPair of this namespace whose router serves this one too"),
    ] = ""
    template: Template = Field(default_factory=Template, description="overlay on each router pod")


class Update(SpecModel):
    """Counts lanes, not pods.

    maxUnavailable has no default in the CRD: a server writes defaults into what it stores, and this one would read as
    if somebody had given leave to stop the only lane.
    """

    max_unavailable: Annotated[
        Int | None,
        Hot(),
        Field(
            ge=0,
            le=256,
            description="lanes that may be out of service during a rollout; default: 1, in a cluster not the only one. "
            "Evictions may take as many, and always one",
        ),
    ] = None
    max_surge: Annotated[Int, Hot(), Field(ge=0, le=256, description="extra lanes during a rollout")] = 0
    drain_seconds: Annotated[
        Int,
        Hot(),
        Field(ge=0, le=3600, description="time that running requests get before a lane is stopped"),
    ] = 120

    @property
    def unavailable_lanes(self) -> int:
        """`maxUnavailable`, or 1 where it is not given."""
        return DEFAULT_MAX_UNAVAILABLE if self.max_unavailable is None else self.max_unavailable


class Ratio(SpecModel):
    """Bounds that role scaling may not leave: 100 × decode.replicas / prefill.replicas."""

    min_decode_per_prefill_percent: Annotated[
        Int,
        Hot(),
        Field(ge=1, le=10_000, description="fewest decode pods for each 100 prefill pods of a lane"),
    ] = 50
    max_decode_per_prefill_percent: Annotated[
        Int, Hot(), Field(ge=1, le=10_000, description="most decode pods for each 100 prefill pods of a lane")
    ] = 400
