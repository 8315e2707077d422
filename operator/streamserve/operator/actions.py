"""What the operator may do to the cluster, each with its reason: the reason becomes the log line and the Event.

    Apply      server-side apply of our fields, forced; `seed` is added when the object does not exist yet
    Rehearse   ask the server whether it would take a new object; nothing is written
    Drain      write the drain mark on a pod: from then on the edge asks its worker to finish what it runs
    SetGate    write the readiness gate into a pod's status
    Delete     only the object with this uid: a successor of the same name is safe

All of them may be repeated: an action of a plan that was carried out halfway is part of the next plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from streamserve.operator.naming import Manifest


class Reason(StrEnum):
    MISSING = "Missing"
    CHANGED = "Changed"
    REVISION_CHANGED = "RevisionChanged"
    SCALED_DOWN = "ScaledDown"
    REPLICAS_CHANGED = "ReplicasChanged"
    DRAINED = "Drained"
    DRAIN_TIMEOUT = "DrainTimeout"
    NOT_RUNNING = "NotRunning"
    POD_FAILED = "PodFailed"
    STUCK_TERMINATING = "StuckTerminating"
    NOT_WANTED = "NotWanted"
    LANE_READY = "LaneReady"
    LANE_FENCED = "LaneFenced"


@dataclass(frozen=True, slots=True)
class Apply:
    """`detail` names the first field that differs, or which lane a new pod is of. `first`: a strategic merge patch that
    goes before it, for what an apply cannot take out of a list."""

    manifest: Manifest = field(repr=False)
    reason: Reason
    detail: str = ""
    seed: Manifest | None = field(default=None, repr=False)
    first: Manifest | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Rehearse:
    """Before a pod that serves is given up for this one."""

    manifest: Manifest = field(repr=False)
    reason: Reason
    detail: str = ""

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Drain:
    """`seconds` bounds it; `since` is written down, so that an operator that starts later knows the end. `begun`: a
    lane of which another pod is marked already, which nothing is gained by leaving half drained."""

    name: str
    uid: str
    reason: Reason
    since: str
    seconds: int
    begun: bool = False
    kind: str = "Pod"


@dataclass(frozen=True, slots=True)
class SetGate:
    name: str
    uid: str
    ready: bool
    reason: Reason
    detail: str = ""
    kind: str = "Pod"


@dataclass(frozen=True, slots=True)
class Delete:
    """`grace_seconds` None leaves it to the object; 0 does not wait for a kubelet that no longer answers."""

    kind: str
    name: str
    uid: str
    reason: Reason
    detail: str = ""
    grace_seconds: int | None = None


Action = Apply | Rehearse | Drain | SetGate | Delete
