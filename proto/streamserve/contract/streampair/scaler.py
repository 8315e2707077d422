"""The StreamPairScaler: `/scale` for one role of a StreamPair, because a kind can have only one of its own.

The operator makes one for each role whose `scaling.mode` is External, named `<pair>-<role>`; a HorizontalPodAutoscaler
or KEDA writes its `spec.replicas`, and the operator keeps `spec.ratio` of the pair.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from streamserve.contract.streampair.fields import DnsLabel, Fixed, Int, Scale, SpecModel
from streamserve.contract.streampair.resource import Conditions, LabelQuery, Metadata
from streamserve.contract.streampair.rule import Cel
from streamserve.contract.streampair.workers import MAX_REPLICAS_PER_LANE


class ScaledRole(StrEnum):
    PREFILL = "Prefill"
    DECODE = "Decode"


class StreamPairScalerSpec(SpecModel):
    pair_name: Annotated[DnsLabel, Fixed(), Field(description="StreamPair of this namespace whose role is scaled")]
    role: Annotated[ScaledRole, Fixed(), Field(description="role whose replicas in each lane are set here")]
    replicas: Annotated[
        Int,
        Scale(),
        Field(
            ge=1, le=MAX_REPLICAS_PER_LANE, description="pods of the role in each lane, within spec.ratio of the pair"
        ),
    ] = 1


class StreamPairScalerStatus(SpecModel):
    observed_generation: Annotated[Int, Field(ge=0, description="generation that this status is about")] = 0
    replicas: Annotated[Int, Field(ge=0, description="pods of the role that each lane has")] = 0
    selector: Annotated[LabelQuery, Field(description="label selector of the role's pods, for the autoscaler")] = ""
    conditions: Annotated[Conditions, Field(description="what holds now, and since when")] = ()


class StreamPairScaler(SpecModel):
    """Sets the replicas of one role of a StreamPair, for autoscalers."""

    api_version: Literal["streamserve.io/v1alpha1"] = "streamserve.io/v1alpha1"
    kind: Literal["StreamPairScaler"] = "StreamPairScaler"
    metadata: Metadata = Field(description="its name is <pair>-<role>")
    spec: StreamPairScalerSpec = Field(description="which role, and how many")
    status: Annotated[StreamPairScalerStatus | None, Field(description="written by the operator")] = None


NAME_MESSAGE = "must be {wanted}: one scaler for each role, named after it"
NAME_RULE = Cel(
    "self.metadata.name == self.spec.pairName + '-' + self.spec.role.lowerAscii()",
    {"wanted": "self.spec.pairName + '-' + self.spec.role.lowerAscii()"},
    at=("metadata", "name"),
)
