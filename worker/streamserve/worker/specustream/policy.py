"""What the control plane says about depth: bounds, objective and policy, never the depth itself.

The loop that picks a depth runs inside the engine, once a step (5-50 ms); a network hop would be a hundred
times slower than the thing it steers. So only these few values travel, and they are swapped between steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_DEPTH = 16
"""Deepest speculation that any record, histogram or mask has room for."""

POLICIES = ("Goodput", "Fixed", "Off")


@dataclass(frozen=True, slots=True)
class DepthPolicy:
    """Bounds and objective of one engine's law. `Off` means depth 0, whatever the bounds say."""

    policy: str = "Goodput"
    min_depth: int = 0
    max_depth: int = MAX_DEPTH
    fixed_depth: int = 0
    itl_seconds: float = 0.0
    """Bound on the time of one decode step; 0 means none."""
    probe_fraction: float = 0.02
    """Share of decode steps that may explore a depth other than the best known one."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is not one of {', '.join(POLICIES)}")
        if not 0 <= self.min_depth <= self.max_depth <= MAX_DEPTH:
            raise ValueError(
                f"depth bounds {self.min_depth}..{self.max_depth} must satisfy 0 <= min <= max <= {MAX_DEPTH}"
            )
        if not 0 <= self.fixed_depth <= MAX_DEPTH:
            raise ValueError(f"fixed depth {self.fixed_depth} is not within 0..{MAX_DEPTH}")
        if not (math.isfinite(self.itl_seconds) and self.itl_seconds >= 0):
            raise ValueError(f"inter-token bound {self.itl_seconds} must be finite and not negative")
        if not 0 <= self.probe_fraction <= 1:
            raise ValueError(f"probe fraction {self.probe_fraction} is not within 0..1")

    def clamp(self, depth: int) -> int:
        """`depth` moved to the nearest one that this policy allows."""
        if self.policy == "Off":
            return 0
        return min(max(depth, self.min_depth), self.max_depth)

    @property
    def ceiling(self) -> int:
        """The deepest draft that may be verified under this policy."""
        if self.policy == "Off":
            return 0
        return self.clamp(self.fixed_depth) if self.policy == "Fixed" else self.max_depth

    def within(self, built_depth: int) -> DepthPolicy:
        """This policy limited to what the engine was built for (its buffers hold `built_depth` drafts)."""
        return DepthPolicy(
            policy=self.policy,
            min_depth=min(self.min_depth, built_depth),
            max_depth=min(self.max_depth, built_depth),
            fixed_depth=min(self.fixed_depth, built_depth),
            itl_seconds=self.itl_seconds,
            probe_fraction=self.probe_fraction,
        )

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> DepthPolicy:
        """Parse the mapping that `to_mapping` writes; raises ValueError with the field's name."""
        known = DepthPolicy.__dataclass_fields__
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown depth policy field {unknown[0]!r}; known: {', '.join(known)}")
        return DepthPolicy(**values)


@dataclass(frozen=True, slots=True, order=True)
class Adopted:
    """Which configuration the scheduler runs under: only a higher (generation, step) is ever adopted."""

    generation: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Configure:
    """The message that swaps a policy between two steps."""

    version: Adopted
    policy: DepthPolicy

    def to_json(self) -> str:
        return json.dumps(
            {
                "generation": self.version.generation,
                "step": self.version.step,
                "policy": self.policy.to_mapping(),
            }
        )

    @staticmethod
    def from_json(payload: str) -> Configure:
        """Parse `to_json`'s text; raises ValueError on anything else."""
        values = json.loads(payload)
        if not isinstance(values, dict) or not isinstance(values.get("policy"), dict):
            raise ValueError("a configure message is an object with generation, step and policy")
        version = Adopted(int(values.get("generation", 0)), int(values.get("step", 0)))
        return Configure(version, DepthPolicy.from_mapping(values["policy"]))
