"""The StreamPair itself: metadata, spec, status. Written by people (spec) and by the operator (status)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from streamserve.contract.streampair.enums import FailurePolicy, Placement
from streamserve.contract.streampair.fields import (
    Bool,
    Cold,
    DnsLabel,
    Fixed,
    Hot,
    Int,
    MapKey,
    MapValue,
    Namespace,
    Scale,
    ShortText,
    SpecModel,
)
from streamserve.contract.streampair.policies import (
    Admission,
    Ratio,
    Router,
    Routing,
    Slo,
    Speculation,
    Update,
)
from streamserve.contract.streampair.workers import Engine, ModelSpec, Role

API_VERSION = "streamserve.io/v1alpha1"
KIND = "StreamPair"
MAX_LANES = 256


class StreamPairSpec(SpecModel):
    model: ModelSpec = Field(description="what is served, and under which names")
    engine: Engine = Field(default_factory=Engine, description="what both roles run")
    lanes: Annotated[
        Int,
        Scale(),
        Field(
            ge=0,
            le=MAX_LANES,
            description="a lane is prefill.replicas + decode.replicas pods of one revision",
        ),
    ] = 1
    prefill: Role = Field(default_factory=Role, description="the pods of a lane that read prompts")
    decode: Role = Field(default_factory=Role, description="the pods of a lane that write tokens")
    ratio: Ratio = Field(default_factory=Ratio, description="bounds that role scaling may not leave")
    placement: Annotated[
        Placement, Cold(), Field(description="how near the pods of one lane are: KV moves between them")
    ] = Placement.SAME_NODE
    speculation: Speculation = Field(default_factory=Speculation, description="drafting and its depth")
    slo: Slo = Field(default_factory=Slo, description="what counts as good service")
    routing: Routing = Field(default_factory=Routing, description="how a lane is chosen")
    admission: Admission = Field(default_factory=Admission, description="what waits, and what is shed")
    failure_policy: Annotated[
        FailurePolicy,
        Hot(),
        Field(description="Degrade lets decode prefill by itself as the last step, Strict sheds"),
    ] = FailurePolicy.DEGRADE
    router: Router = Field(default_factory=Router, description="the processes that clients talk to")
    update: Update = Field(default_factory=Update, description="how lanes are replaced")
    paused: Annotated[Bool, Hot(), Field(description="true: the operator writes nothing but status")] = False


class Metadata(SpecModel):
    """Of an object from a file or from the API server; what the server adds is kept and not looked at."""

    name: Annotated[DnsLabel, Fixed(), Field(description="name of the StreamPair, root of every child's name")]
    namespace: Annotated[Namespace, Fixed(), Field(description="where it and its children live")] = "default"
    labels: Annotated[dict[MapKey, MapValue], Field(max_length=128)] = Field(default_factory=dict)
    annotations: Annotated[dict[MapKey, Annotated[str, Field(max_length=262_144)]], Field(max_length=128)] = Field(
        default_factory=dict
    )
    uid: ShortText = ""
    generation: Annotated[Int, Field(ge=0)] = 0
    resource_version: ShortText = ""
    creation_timestamp: ShortText | None = None
    deletion_timestamp: ShortText | None = None
    deletion_grace_period_seconds: Int | None = None
    generate_name: ShortText = ""
    self_link: ShortText = ""
    finalizers: Annotated[tuple[ShortText, ...], Field(max_length=32)] = ()
    owner_references: Annotated[tuple[dict[str, Any], ...], Field(max_length=32)] = ()
    managed_fields: Annotated[tuple[dict[str, Any], ...], Field(max_length=256)] = ()


class Condition(SpecModel):
    type: Annotated[str, Field(min_length=1, max_length=316, description="what is stated, Ready say")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="whether it holds")]
    observed_generation: Annotated[Int, Field(ge=0, description="generation of the spec that it is about")] = 0
    last_transition_time: Annotated[
        ShortText, Field(description="when status last changed", json_schema_extra={"format": "date-time"})
    ] = ""
    reason: Annotated[str, Field(max_length=1024, description="one word for programs")] = ""
    message: Annotated[str, Field(max_length=32_768, description="a sentence for people")] = ""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
LabelQuery = Annotated[str, Field(max_length=1024)]
Count = Annotated[Int, Field(ge=0)]


class RoleStatus(SpecModel):
    ready: Annotated[Count, Field(description="pods that take requests")] = 0
    total: Annotated[Count, Field(description="pods that there should be")] = 0
    summary: Annotated[ShortText, Field(description="ready/total, for kubectl get")] = ""


class RolesStatus(SpecModel):
    prefill: RoleStatus = Field(default_factory=RoleStatus, description="pods that read prompts")
    decode: RoleStatus = Field(default_factory=RoleStatus, description="pods that write tokens")


class ConfigStatus(SpecModel):
    """How many workers and routers have adopted the runtime config of `generation`."""

    generation: Annotated[Count, Field(description="generation whose runtime config was sent last")] = 0
    applied_by: Annotated[Count, Field(description="workers and routers that have adopted it")] = 0
    of: Annotated[Count, Field(description="workers and routers that should")] = 0


class StreamPairStatus(SpecModel):
    observed_generation: Annotated[Count, Field(description="generation that this status is about")] = 0
    conditions: Annotated[Conditions, Field(description="what holds now, and since when")] = ()
    lanes: Annotated[Count, Field(description="lanes that exist")] = 0
    ready_lanes: Annotated[Count, Field(description="lanes that take requests, of any revision")] = 0
    selector: Annotated[LabelQuery, Field(description="label selector of the pods, for autoscalers")] = ""
    revision: Annotated[ShortText, Field(description="hash of what the pods are built from")] = ""
    roles: RolesStatus = Field(default_factory=RolesStatus, description="pods by role")
    config: ConfigStatus = Field(default_factory=ConfigStatus, description="how far the runtime config has come")
    address: Annotated[ShortText, Field(description="host:port of the router's Service, for clients")] = ""


class StreamPair(SpecModel):
    """A model served by lanes of prefill and decode pods, with drafting that adapts."""

    api_version: Literal["streamserve.io/v1alpha1"] = "streamserve.io/v1alpha1"
    kind: Literal["StreamPair"] = "StreamPair"
    metadata: Metadata = Field(description="name and namespace, labels and annotations")
    spec: StreamPairSpec = Field(description="what is wanted")
    status: Annotated[StreamPairStatus | None, Field(description="written by the operator")] = None

    @property
    def served_names(self) -> tuple[str, ...]:
        """Names that clients may ask for: `model.servedNames`, or the StreamPair's own."""
        return self.spec.model.served_names or (self.metadata.name,)
