"""Parts of a pod that a template may carry, as far as they are handed to Kubernetes: typed, bounded, described.

Field names and meanings are those of the core/v1 API, and so are the bounds of most fields; `rules_pods.py` names what
is left to the API server. What depends on the kind of volume and `affinity` stay open, for their schemas are long.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from streamserve.contract.streampair.fields import (
    PATTERN_MEANINGS,
    AbsolutePath,
    AnnotationKey,
    Bool,
    Int,
    LabelKey,
    LabelValue,
    MapValue,
    OptionalLabelKey,
    Quantity,
    SecretKey,
    ShortText,
    SpecModel,
    Subdomain,
    VolumeName,
    plain_json,
)

ENV_NAME_PATTERN = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
POD_FIELD_PATTERN = (
    r"^(metadata\.(name|namespace|uid)|metadata\.(labels|annotations)\['[^']+'\]|"
    r"spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?))$"
)
RESOURCE_FIELD_PATTERN = r"^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i)$"
PATTERN_MEANINGS |= {
    ENV_NAME_PATTERN: "letters, digits, '-', '_' and '.', not beginning with a digit",
    POD_FIELD_PATTERN: "a field that variables may show: metadata.name, metadata.labels['x'], status.podIP and others",
    RESOURCE_FIELD_PATTERN: "limits. or requests. and cpu, memory, ephemeral-storage or hugepages-2Mi",
}

MAX_ID = 2_147_483_647
MAX_VOLUME_FIELDS = 64

EnvName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=ENV_NAME_PATTERN)]
PodField = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=POD_FIELD_PATTERN)]
ResourceField = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=RESOURCE_FIELD_PATTERN)]
EnvValue = Annotated[str, StringConstraints(max_length=32_768)]
Names = Annotated[tuple[ShortText, ...], Field(max_length=64)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[AnnotationKey, MapValue], Field(max_length=64)]
Id = Annotated[Int, Field(ge=0, le=MAX_ID)]


class TolerationOperator(StrEnum):
    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Unsatisfiable(StrEnum):
    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class SelectorOperator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class NodePolicy(StrEnum):
    HONOR = "Honor"
    IGNORE = "Ignore"


class MountPropagation(StrEnum):
    NONE = "None"
    HOST_TO_CONTAINER = "HostToContainer"
    BIDIRECTIONAL = "Bidirectional"


class GroupChangePolicy(StrEnum):
    ON_ROOT_MISMATCH = "OnRootMismatch"
    ALWAYS = "Always"


class ProfileType(StrEnum):
    RUNTIME_DEFAULT = "RuntimeDefault"
    LOCALHOST = "Localhost"
    UNCONFINED = "Unconfined"


class Toleration(SpecModel):
    key: OptionalLabelKey | None = Field(
        default=None, description="taint that is accepted; none with operator Exists: every taint"
    )
    operator: TolerationOperator | None = Field(
        default=None, description="how the value is compared; Equal unless given"
    )
    value: LabelValue | None = Field(default=None, description="value of the taint, with operator Equal")
    effect: TaintEffect | None = Field(
        default=None, description="effect of the taint that is accepted; none: every effect"
    )
    toleration_seconds: Id | None = Field(
        default=None, description="how long a NoExecute taint is borne; none: for ever"
    )


class SelectorRequirement(SpecModel):
    key: LabelKey = Field(description="label that is looked at")
    operator: SelectorOperator = Field(description="how its value relates to the values below")
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = Field(
        default=(), description="values for In and NotIn"
    )


class LabelSelector(SpecModel):
    match_labels: Labels = Field(default_factory=dict, description="labels that must have these values")
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16)] = Field(
        default=(), description="requirements that must hold as well"
    )


class TopologySpreadConstraint(SpecModel):
    max_skew: Int = Field(ge=1, le=1000, description="how uneven the pods may be spread")
    topology_key: LabelKey = Field(description="node label whose values are the domains, a zone's say")
    when_unsatisfiable: Unsatisfiable = Field(description="whether a pod waits or is placed all the same")
    label_selector: LabelSelector | None = Field(default=None, description="pods that are counted")
    min_domains: Annotated[Int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="fewest domains to spread over"
    )
    match_label_keys: Annotated[tuple[LabelKey, ...], Field(max_length=64)] = Field(
        default=(), description="labels of the pod itself that join the selector"
    )
    node_affinity_policy: NodePolicy | None = Field(
        default=None, description="whether only nodes that the pod may use count"
    )
    node_taints_policy: NodePolicy | None = Field(default=None, description="whether tainted nodes count")


class Volume(SpecModel):
    """Its name is looked at, for mounts refer to it; the rest depends on its kind and is kept as it is written."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"maxProperties": MAX_VOLUME_FIELDS})

    name: VolumeName = Field(description="what `volumeMounts` call it; names of our own volumes are refused")

    @model_validator(mode="after")
    def _is_plain(self) -> Self:
        kinds = plain_json(self.model_extra or {})
        if len(kinds) >= MAX_VOLUME_FIELDS:
            raise ValueError(f"must have at most {MAX_VOLUME_FIELDS} entries: remove some")
        return self


class VolumeMount(SpecModel):
    name: VolumeName = Field(description="volume of `volumes` that is mounted")
    mount_path: AbsolutePath = Field(description="where it appears in the container")
    sub_path: ShortText = Field(default="", description="folder of the volume; empty for its root")
    read_only: Bool = Field(default=False, description="true: the container cannot write to it")
    mount_propagation: MountPropagation | None = Field(
        default=None, description="whether later mounts are seen; None unless given"
    )


class FieldVersion(StrEnum):
    V1 = "v1"


class FieldReference(SpecModel):
    field_path: PodField = Field(description="field of the pod, metadata.labels['x'] say")
    api_version: FieldVersion = Field(default=FieldVersion.V1, description="schema that the path is written in")


class ResourceReference(SpecModel):
    resource: ResourceField = Field(description="limits.memory, requests.cpu and the like")
    container_name: ShortText = Field(default="", description="container whose resource it is; empty for this one")
    divisor: Quantity | None = Field(default=None, description="unit of the result; 1 unless given")


class KeyReference(SpecModel):
    name: Subdomain = Field(description="object in the StreamPair's namespace")
    key: SecretKey = Field(description="entry of that object")
    optional: Bool = Field(default=False, description="true: the container starts without it")


class EnvSource(SpecModel):
    field_ref: FieldReference | None = Field(default=None, description="a field of the pod")
    resource_field_ref: ResourceReference | None = Field(
        default=None, description="a limit or request of the container"
    )
    config_map_key_ref: KeyReference | None = Field(default=None, description="an entry of a ConfigMap")
    secret_key_ref: KeyReference | None = Field(default=None, description="an entry of a Secret")


class EnvVar(SpecModel):
    name: EnvName = Field(description="variable; those that StreamServe sets are refused")
    value: EnvValue = Field(default="", description="its value; $(NAME) is replaced by Kubernetes")
    value_from: EnvSource | None = Field(default=None, description="where its value is read instead")


class LocalReference(SpecModel):
    name: Subdomain = Field(description="object in the StreamPair's namespace")


class SeLinuxOptions(SpecModel):
    level: ShortText = Field(default="", description="SELinux level label")
    role: ShortText = Field(default="", description="SELinux role label")
    type: ShortText = Field(default="", description="SELinux type label")
    user: ShortText = Field(default="", description="SELinux user label")


class SeccompProfile(SpecModel):
    type: ProfileType = Field(description="which profile filters system calls")
    localhost_profile: ShortText | None = Field(default=None, description="file on the node, with type Localhost")


class Capabilities(SpecModel):
    add: Names = Field(default=(), description="capabilities that are added, IPC_LOCK for RDMA say")
    drop: Names = Field(default=(), description="capabilities that are dropped besides ours: we drop ALL")


class Sysctl(SpecModel):
    name: ShortText = Field(description="kernel parameter of the pod")
    value: ShortText = Field(description="value it is set to")


class SecurityContext(SpecModel):
    """Of the pod and of the container: what only a pod has goes to the pod, the rest to the container."""

    run_as_user: Id | None = Field(default=None, description="user id of the processes")
    run_as_group: Id | None = Field(default=None, description="group id of the processes")
    run_as_non_root: Bool | None = Field(default=None, description="true: an image that would run as root is refused")
    fs_group: Id | None = Field(default=None, description="group that owns mounted volumes")
    fs_group_change_policy: GroupChangePolicy | None = Field(
        default=None, description="when the owner of volumes is changed"
    )
    supplemental_groups: Annotated[tuple[Id, ...], Field(max_length=32)] = Field(
        default=(), description="further groups"
    )
    se_linux_options: SeLinuxOptions | None = Field(default=None, description="SELinux labels of the processes")
    seccomp_profile: SeccompProfile | None = Field(
        default=None, description="filter of system calls; RuntimeDefault unless given"
    )
    sysctls: Annotated[tuple[Sysctl, ...], Field(max_length=32)] = Field(
        default=(), description="kernel parameters of the pod"
    )
    capabilities: Capabilities | None = Field(default=None, description="Linux capabilities of the container")
    privileged: Bool | None = Field(default=None, description="true needs a namespace whose Pod Security permits it")
    allow_privilege_escalation: Bool | None = Field(
        default=None, description="whether a process may gain more than its parent"
    )
    read_only_root_filesystem: Bool | None = Field(
        default=None, description="false: the container may write to its image"
    )
