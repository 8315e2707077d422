"""The part of the spec that says what runs: model, engine, the two roles of a lane, the pod overlay."""

from typing import Annotated

from pydantic import Field

from streamserve.contract.streampair import flags
from streamserve.contract.streampair.enums import EngineKind, ScalingMode
from streamserve.contract.streampair.fields import (
    AbsolutePath,
    Cold,
    Fixed,
    FlagName,
    FlagValue,
    Hot,
    Image,
    Int,
    JsonObject,
    ModelName,
    OptionalSubdomain,
    Quantity,
    ResourceName,
    Scale,
    SecretKey,
    ServedName,
    ShortText,
    SpecModel,
    Subdomain,
)
from streamserve.contract.streampair.pods import (
    Annotations,
    EnvVar,
    Labels,
    LocalReference,
    SecurityContext,
    Toleration,
    TopologySpreadConstraint,
    Volume,
    VolumeMount,
)

MAX_REPLICAS_PER_LANE = 8

Args = Annotated[dict[FlagName, FlagValue], Field(max_length=128)]
Quantities = Annotated[dict[ResourceName, Quantity], Field(max_length=32)]
Volumes = Annotated[tuple[Volume, ...], Field(max_length=64)]
Tolerations = Annotated[tuple[Toleration, ...], Field(max_length=64)]
SpreadConstraints = Annotated[tuple[TopologySpreadConstraint, ...], Field(max_length=16)]
VolumeMounts = Annotated[tuple[VolumeMount, ...], Field(max_length=64)]
EnvVars = Annotated[tuple[EnvVar, ...], Field(max_length=128)]
PullSecrets = Annotated[tuple[LocalReference, ...], Field(max_length=16)]


class SecretRef(SpecModel):
    name: Annotated[Subdomain, Cold(), Field(description="Secret in the StreamPair's namespace")]
    key: Annotated[SecretKey, Cold(), Field(description="entry of that Secret")] = "token"


class HubSource(SpecModel):
    token_secret: Annotated[
        SecretRef | None, Cold(), Field(description="token for a gated model; none for a public one")
    ] = None


class VolumeClaimSource(SpecModel):
    claim_name: Annotated[Subdomain, Cold(), Field(description="claim that holds the weights")]
    sub_path: Annotated[ShortText, Cold(), Field(description="folder inside the claim; empty for its root")] = ""


class HostPathSource(SpecModel):
    path: Annotated[
        AbsolutePath,
        Cold(),
        Field(description="folder on the node; the namespace's Pod Security must permit it"),
    ]


class Source(SpecModel):
    """Where weights come from; none of them: the name is in the image, or a folder beside the file."""

    hub: Annotated[HubSource | None, Cold(), Field(description="download `name` from the hub")] = None
    persistent_volume_claim: Annotated[
        VolumeClaimSource | None, Cold(), Field(description="mount a claim that holds the weights")
    ] = None
    host_path: Annotated[HostPathSource | None, Cold(), Field(description="mount a folder of the node")] = None


class ModelSpec(SpecModel):
    name: Annotated[
        ModelName,
        Fixed(),
        Field(description="hub id, path inside the pod, or a folder relative to this file in local mode"),
    ]
    served_names: Annotated[
        tuple[ServedName, ...],
        Hot(),
        Field(max_length=16, description="names that clients may ask for; empty means metadata.name"),
    ] = ()
    source: Annotated[Source | None, Cold(), Field(description="where the weights come from; at most one kind")] = None


class Engine(SpecModel):
    image: Annotated[
        Image, Cold(), Field(description="worker image; empty means the chart's own, of the same release")
    ] = ""
    kind: Annotated[EngineKind, Cold(), Field(description="real vLLM, or the simulator that replays a calibration")] = (
        EngineKind.VLLM
    )
    args: Annotated[
        Args, Cold(), Field(description="vLLM flags of both roles, without dashes; ours are refused by name")
    ] = Field(default_factory=dict)


class RoleEngine(SpecModel):
    args: Annotated[Args, Cold(), Field(description="vLLM flags of this role only; they win over spec.engine.args")] = (
        Field(default_factory=dict)
    )


class Scaling(SpecModel):
    mode: Annotated[ScalingMode, Hot(), Field(description="External hands `replicas` to a StreamPairScaler")] = (
        ScalingMode.FIXED
    )


class Resources(SpecModel):
    limits: Annotated[
        Quantities,
        Cold(),
        Field(description="GPUs, where asked for, equal tensor × pipeline × data parallel size"),
    ] = Field(default_factory=dict)
    requests: Annotated[
        Quantities, Cold(), Field(description="what the scheduler sets aside; defaults to the limits")
    ] = Field(default_factory=dict)


class Template(SpecModel):
    """Overlay on the pods that we build: exactly these keys, the rest of a pod is ours."""

    labels: Annotated[Labels, Cold(), Field(description="extra pod labels; streamserve.io/* is ours")] = Field(
        default_factory=dict
    )
    annotations: Annotated[
        Annotations, Cold(), Field(description="extra pod annotations; streamserve.io/* is ours")
    ] = Field(default_factory=dict)
    node_selector: Annotated[Labels, Cold(), Field(description="nodes that may run the pods")] = Field(
        default_factory=dict
    )
    affinity: Annotated[JsonObject, Cold(), Field(description="added to the affinity that `placement` makes")] = Field(
        default_factory=dict
    )
    tolerations: Annotated[Tolerations, Cold(), Field(description="taints the pods accept, of GPU nodes say")] = ()
    topology_spread_constraints: Annotated[
        SpreadConstraints, Cold(), Field(description="how lanes spread over zones")
    ] = ()
    volumes: Annotated[Volumes, Cold(), Field(description="extra volumes, a model cache say")] = ()
    volume_mounts: Annotated[VolumeMounts, Cold(), Field(description="where those volumes appear")] = ()
    env: Annotated[
        EnvVars, Cold(), Field(description="extra environment; variables that we set are refused by name")
    ] = ()
    service_account_name: Annotated[
        OptionalSubdomain, Cold(), Field(description="identity of the pods; empty means ours, without rights")
    ] = ""
    image_pull_secrets: Annotated[PullSecrets, Cold(), Field(description="for a private registry")] = ()
    priority_class_name: Annotated[
        OptionalSubdomain, Cold(), Field(description="who is evicted first when a node is full")
    ] = ""
    runtime_class_name: Annotated[
        OptionalSubdomain, Cold(), Field(description="container runtime, `nvidia` on some clusters")
    ] = ""
    security_context: Annotated[
        SecurityContext, Cold(), Field(description="over the restricted defaults, field by field")
    ] = Field(default_factory=SecurityContext)


class Role(SpecModel):
    """Prefill or decode: the pods of one role in one lane."""

    replicas: Annotated[
        Int, Scale(), Field(ge=1, le=MAX_REPLICAS_PER_LANE, description="pods of this role in each lane")
    ] = 1
    scaling: Scaling = Field(default_factory=Scaling, description="who sets `replicas`")
    engine: RoleEngine = Field(default_factory=RoleEngine, description="over spec.engine, for this role")
    resources: Resources = Field(default_factory=Resources, description="of each pod of this role")
    template: Template = Field(default_factory=Template, description="overlay on each pod of this role")


def effective_args(engine: Engine, role: Role) -> dict[str, str]:
    """The flags one role's engine starts with: the shared ones, overridden by the role's own.

    A switch of the role overrides its negation too, and a negation its switch.
    """
    undone = {flags.opposite(flag) for flag in role.engine.args}
    return {flag: value for flag, value in engine.args.items() if flag not in undone} | role.engine.args
