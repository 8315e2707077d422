"""What an edit of the file takes, before anything is done about it.

An edit with a fixed field in it is refused whole: taking half of an edit would leave the file and the fleet apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streamserve.contract.streampair import Changes, StreamPair, classify
from streamserve.contract.streampair.changes import Change
from streamserve.contract.streampair.fields import render
from streamserve.contract.streampair.paths import CLUSTER_ONLY


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`refused` is empty when the edit may be taken over."""

    changes: Changes
    refused: tuple[str, ...] = ()
    hot: str = ""
    cold: str = ""
    scale: str = ""
    idle: str = ""

    @property
    def nothing(self) -> bool:
        return not self.changes


def judge(old: StreamPair, new: StreamPair) -> Verdict:
    """Sort the changes by what they take; each text lists its changes as `path old → new`."""
    changes = classify(old, new)
    if changes.fixed:
        return Verdict(
            changes=changes,
            refused=tuple(
                f"{show(change)}: cannot be changed while it runs; put the old value back, or stop and start `up` again"
                for change in changes.fixed
            ),
        )
    idle = [change for change in changes if has_no_effect_here(change.path)]
    return Verdict(
        changes=changes,
        hot=_listed(change for change in changes.hot if change not in idle),
        cold=_listed(change for change in changes.cold if change not in idle),
        scale=_listed(change for change in changes.scale if change not in idle),
        idle=_listed(idle),
    )


# The planner honours it here too, for whoever has the memory for an extra lane.
_HONOURED = frozenset({"spec.update.maxSurge"})
_CLUSTER_ONLY = tuple(render(path) for path in CLUSTER_ONLY)


def has_no_effect_here(path: str) -> bool:
    """True for a setting that means something in a cluster only."""
    if path in _HONOURED:
        return False
    return any(path == prefix or path.startswith((f"{prefix}.", f"{prefix}[")) for prefix in _CLUSTER_ONLY)


def show(change: Change) -> str:
    """`spec.speculation.depth.max 6 → 0`"""
    text = str(change).removesuffix(")").rpartition(" (")[0]
    path, _, values = text.partition(": ")
    return f"{path} {values}"


def _listed(changes: Iterable[Change]) -> str:
    return ", ".join(show(change) for change in changes)
