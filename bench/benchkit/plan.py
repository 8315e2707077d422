"""What to run, in which order: the configuration, its arms, and what is still missing.

    repeat r:  the sittings in shuffled order; a sitting = arms whose processes are up at the same time
    sitting:   each concurrency as often as `turns` says, each time every arm of it with its share of the requests, all
               shuffled

Arms that are compared sit together: a machine that is shared changes its speed within minutes and within seconds, and
what is measured right after each other has met the same machine. So the shares are small. The order depends on (seed,
repeat, sitting) alone, so that a run that was cut off goes on where it stopped.
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
    # Of all repeats only the first so many: for an arm that takes long and has no bound to hold.
    repeats: Annotated[int, Field(ge=1)] | None = None

    @property
    def drafts(self) -> bool:
        return self.depth != "None"

    @property
    def group(self) -> str:
        """Arms of one group share processes: StreamServe with a drafter serves every depth, for depth is hot."""
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
    together: tuple[tuple[str, ...], ...] = ()
    turns: dict[int, Annotated[int, Field(ge=1, le=20)]] = {}
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
        systems = {arm.name: arm.system for arm in self.arms}
        seated = [name for names in self.together for name in names]
        for name in seated:
            if name not in systems:
                raise ValueError(f"`together` names {name}, which is no arm")
            if systems[name] == "Plain":
                raise ValueError(
                    f"{name} has its load in its own process and takes no turns: leave it out of `together`"
                )
            if seated.count(name) > 1:
                raise ValueError(f"`together` names {name} twice")
        for concurrency, requests in self.requests.items():
            turns = self.turns.get(concurrency, 1)
            if requests % turns:
                raise ValueError(f"{requests} requests at {concurrency} at once cannot be shared by {turns} turns")
        for concurrency in self.turns:
            if concurrency not in self.requests:
                raise ValueError(f"`turns` names {concurrency} at once, which `requests` does not")
        return self

    @property
    def fingerprint(self) -> str:
        return digest(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Sitting:
    """Arms of one repeat whose processes are up at the same time."""

    repeat: int
    arms: tuple[Arm, ...]

    @property
    def name(self) -> str:
        return ", ".join(arm.name for arm in self.arms)

    @property
    def groups(self) -> dict[str, tuple[Arm, ...]]:
        """Arms by the processes that serve them."""
        names = dict.fromkeys(arm.group for arm in self.arms)
        return {name: tuple(arm for arm in self.arms if arm.group == name) for name in names}


@dataclass(frozen=True, slots=True)
class Share:
    """Requests that one arm answers in one go: `requests` of them at `concurrency`, from number `first` on, after
    `warmup` that are dropped."""

    arm: Arm
    concurrency: int
    first: int
    requests: int
    warmup: int


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
            "turns": {1: 2, 4: 2},
            "warmup_requests": 1,
            "output_tokens": 32,
            "arms": arms,
            "together": (tuple(arm.name for arm in arms),),
            "pairs": tuple(pair for pair in plan.pairs if set(pair) <= {arm.name for arm in arms}),
        }
    )


def schedule(plan: Plan, done: Collection[tuple[int, str]]) -> list[Sitting]:
    """What is left to do, in order; `done` holds (repeat, arm name)."""
    sittings = []
    for repeat in range(plan.repeats):
        rng = Random(f"{plan.seed}/{repeat}")
        seats = _seats(plan)
        rng.shuffle(seats)
        for names in seats:
            left = tuple(
                arm
                for arm in plan.arms
                if arm.name in names and (repeat, arm.name) not in done and repeat < (arm.repeats or plan.repeats)
            )
            if left:
                sittings.append(Sitting(repeat, left))
    return sittings


def shares(plan: Plan, sitting: Sitting) -> list[Share]:
    """Who answers what, in order. An arm that sits alone answers all of a concurrency in one go. Engines that are new
    are warmed up in full, later as many requests are dropped as are sent at once, if that is less."""
    rng = Random(f"{plan.seed}/{sitting.repeat}/{sitting.name}")
    turns = {
        concurrency: plan.turns.get(concurrency, 1) if len(sitting.arms) > 1 else 1 for concurrency in plan.requests
    }
    found = []
    for turn in range(max(turns.values())):
        for concurrency, requests in rng.sample(list(plan.requests.items()), len(plan.requests)):
            if turn >= turns[concurrency]:
                continue
            part = requests // turns[concurrency]
            warmup = plan.warmup_requests if turn == 0 else min(plan.warmup_requests, concurrency)
            for arm in rng.sample(sitting.arms, len(sitting.arms)):
                found.append(Share(arm, concurrency, turn * part, part, warmup))
    return found


def _seats(plan: Plan) -> list[frozenset[str]]:
    """Names that sit together; who is not named in `together` sits with the arms of its own processes."""
    seated = {name for names in plan.together for name in names}
    alone: dict[str, set[str]] = {}
    for arm in plan.arms:
        if arm.name not in seated:
            alone.setdefault(arm.group, set()).add(arm.name)
    return [frozenset(names) for names in plan.together] + [frozenset(names) for names in alone.values()]
