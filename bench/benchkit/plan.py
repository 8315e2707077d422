"""What to run, in which order: the configuration, its arms, and what is still missing.

    repeat r:  the groups in shuffled order; a group = the arms that one set of processes can serve (StreamServe with a
               drafter serves every depth, for depth is hot), in shuffled order too

The order depends on (seed, repeat) alone, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchkit import configuration
from benchkit.results import digest

Depth = Literal["None", "Goodput"] | Annotated[int, Field(ge=1, le=16)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Model):
    name: str
    system: Literal["Plain", "VllmPair", "StreamServe"]
    depth: Depth
    as_shipped: bool = False
    front: Literal["Grpc", "Http"] = "Grpc"

    @property
    def drafts(self) -> bool:
        return self.depth != "None"

    @property
    def group(self) -> str:
        """Arms of one group can share processes."""
        if self.system == "StreamServe":
            return "c-with-drafter" if self.drafts else "c-without-drafter"
        return self.name


class Plan(_Model):
    """A benchmark's configuration, `bench/path.yaml`."""

    seed: int
    repeats: Annotated[int, Field(ge=1, le=100)]
    output_tokens: Annotated[int, Field(ge=2, le=1_024)]
    warmup_requests: Annotated[int, Field(ge=0, le=100)]
    requests: dict[int, int]
    prompts_per_workload: Annotated[int, Field(ge=1, le=24)]
    model: str
    draft: str
    max_depth: int
    engine_args: dict[str, str]
    environment: dict[str, str]
    thread_delay_us: int
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    target_upper_bound: float

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("two arms have the same name")
        for pair in self.pairs:
            for name in pair:
                if name not in names:
                    raise ValueError(f"a pair names {name}, which is no arm")
        for arm in self.arms:
            if arm.depth == "Goodput" and arm.system != "StreamServe":
                raise ValueError(f"{arm.name}: only StreamServe has the policy Goodput")
            if isinstance(arm.depth, int) and arm.depth > self.max_depth:
                raise ValueError(f"{arm.name}: depth {arm.depth} is more than max_depth {self.max_depth}")
        return self

    @property
    def fingerprint(self) -> str:
        return digest(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Group:
    """Arms of one repeat that run on one set of processes, in order."""

    repeat: int
    name: str
    arms: tuple[Arm, ...]


def load(path: Path) -> Plan:
    """Raises BenchError that says what is wrong with the file."""
    return configuration.read(path, Plan)


def shortened(plan: Plan) -> Plan:
    """A minute or two of it: two arms, few requests. Its figures mean nothing."""
    arms = tuple(arm for arm in plan.arms if arm.name in ("b-3", "c-3"))
    return plan.model_copy(
        update={
            "repeats": 1,
            "requests": {1: 2, 4: 4},
            "warmup_requests": 1,
            "output_tokens": 32,
            "arms": arms,
            "pairs": tuple(pair for pair in plan.pairs if set(pair) <= {arm.name for arm in arms}),
        }
    )


def schedule(plan: Plan, done: Collection[tuple[int, str]]) -> list[Group]:
    """What is left to do, in order; `done` holds (repeat, arm name)."""
    groups = []
    for repeat in range(plan.repeats):
        rng = Random(f"{plan.seed}/{repeat}")
        names = sorted({arm.group for arm in plan.arms})
        rng.shuffle(names)
        for name in names:
            arms = [arm for arm in plan.arms if arm.group == name]
            rng.shuffle(arms)
            left = tuple(arm for arm in arms if (repeat, arm.name) not in done)
            if left:
                groups.append(Group(repeat, name, left))
    return groups
