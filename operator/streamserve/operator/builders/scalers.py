"""The StreamPairScaler of a role: /scale on the pods of that role in each lane.

spec.replicas belongs to whoever scales. It is sent once, when the object is made (`seed`), and never applied: a field
that we stopped sending would be removed, and one that we kept sending would undo the autoscaler.
"""

from __future__ import annotations

from streamserve.contract.streampair import API_VERSION, StreamPair
from streamserve.operator import naming
from streamserve.operator.naming import Manifest

KIND = "StreamPairScaler"


def scaler(pair: StreamPair, role: str) -> Manifest:
    name = naming.child_name(pair.metadata.name, role)
    spec = {"pairName": pair.metadata.name, "role": role.capitalize()}
    return naming.manifest(pair, API_VERSION, KIND, name, role, {"spec": spec})


def seed(replicas: int) -> Manifest:
    """What is added to the object when it is created, under another field manager."""
    return {"spec": {"replicas": replicas}}
