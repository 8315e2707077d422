"""A pair of lanes under load, minute by minute, as routers would record it: the made-up world of `bench/canary.py`.

    requests of a workload in a minute   Poisson(rate x day x gamma(burst_shape) / burst_shape), spread over the lanes
    engine time of a request             tokens x engine_ms_per_token x exp(shared + lane + lane's own + request)
                                         x (requests / mean) ^ batch_exponent, more on canary lanes when they are slow
    within its SLO                       with probability 1 - logistic(base + slope x shared), less when they are late

`shared` hits all lanes in a minute, `lane` each by itself; both are autoregressive of order one. Given the seed, a run
is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchkit import configuration
from benchkit.results import digest
from streamserve.contract.goodput import GoodputMinute, LaneGoodput
from streamserve.contract.runtime_config import ConfigId
from streamserve.contract.streampair.policies import Rollout

DAY_MINUTES = 1_440


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Model):
    name: str
    share: float
    output_tokens: float
    output_log_deviation: float
    burst_shape: float
    engine_ms_per_token: float


class Noise(_Model):
    request_deviation: float
    shared_deviation: float
    shared_correlation: float
    lane_deviation: float
    lane_correlation: float
    lane_bias_deviation: float
    batch_exponent: float


class Day(_Model):
    rate_amplitude: float
    mix_amplitude: float


class Slo(_Model):
    base: float
    slope: float


class Routing(_Model):
    preference: float
    deviation: float


class Missing(_Model):
    lane: float
    lane_minutes: float
    record: float


class Row(_Model):
    """One line of the result: an effect, and what of the load is otherwise. `want`: verdict -> (least, most)."""

    name: str
    worse_percent: float
    how: Literal["Slow", "Late"] = "Slow"
    want: dict[str, tuple[int, int]] = {}
    lanes: int | None = None
    requests_per_minute: float | None = None
    lane_correlation: float | None = None
    lane_deviation: float | None = None
    hold_seconds: int | None = None


class Load(_Model):
    """`bench/canary.yaml`."""

    seed: int
    runs: Annotated[int, Field(ge=1)]
    acceptance_runs: Annotated[int, Field(ge=1)]
    rules: Rollout
    reconcile_seconds: Annotated[int, Field(ge=1)]
    publish_seconds: Annotated[int, Field(ge=0, lt=60)]
    lanes: Annotated[int, Field(ge=2)]
    requests_per_minute: float
    day: Day
    workloads: tuple[Workload, ...]
    noise: Noise
    slo: Slo
    routing: Routing
    missing: Missing
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        return digest(self.model_dump(mode="json"))

    def under(self, row: Row) -> Load:
        """This load with what the row says otherwise."""
        noise = {k: v for k in ("lane_correlation", "lane_deviation") if (v := getattr(row, k)) is not None}
        whole = {k: v for k in ("lanes", "requests_per_minute") if (v := getattr(row, k)) is not None}
        rules = {} if row.hold_seconds is None else {"hold_seconds": row.hold_seconds}
        return self.model_copy(
            update={
                **whole,
                "noise": self.noise.model_copy(update=noise),
                "rules": self.rules.model_copy(update=rules),
            }
        )


def read(path: Path) -> Load:
    """Raises BenchError that says what is wrong with the file."""
    return configuration.read(path, Load)


@dataclass(slots=True)
class _Drift:
    """An autoregressive series of order one with this standard deviation, begun anywhere in it."""

    deviation: float
    correlation: float
    rng: Random
    value: float = 0.0

    def __post_init__(self) -> None:
        self.value = self.rng.gauss(0.0, self.deviation)

    def step(self) -> float:
        fresh = self.rng.gauss(0.0, self.deviation * math.sqrt(1 - self.correlation**2))
        self.value = self.correlation * self.value + fresh
        return self.value


class World:
    """One run of one row. `minute` makes the next minute's record; the canary lanes are worse from the start."""

    def __init__(self, load: Load, row: Row, canaries: tuple[str, ...], rng: Random) -> None:
        self.load, self.row, self.canaries, self.rng = load, row, canaries, rng
        self.lanes = tuple(f"lane-{lane}" for lane in range(load.lanes))
        noise = load.noise
        self._shared = _Drift(noise.shared_deviation, noise.shared_correlation, rng)
        self._own = {lane: _Drift(noise.lane_deviation, noise.lane_correlation, rng) for lane in self.lanes}
        self._bias = {lane: rng.gauss(0.0, noise.lane_bias_deviation) for lane in self.lanes}
        self._away = dict.fromkeys(self.lanes, 0)
        self._clock = rng.randrange(DAY_MINUTES)

    def minute(self, number: int, config: ConfigId) -> GoodputMinute | None:
        """None where the router's record is lost."""
        rng, load = self.rng, self.load
        shared = self._shared.step()
        slower = {lane: self._slower(lane) for lane in self.lanes}
        counts = self._arrivals()
        here = self._here()
        shares = [
            math.exp(rng.gauss(0.0, load.routing.deviation)) / slower[lane] ** load.routing.preference for lane in here
        ]
        batch = (max(1, sum(counts.values())) / load.requests_per_minute) ** load.noise.batch_exponent
        late = 1 / (1 + math.exp(-(load.slo.base + load.slo.slope * shared)))
        rows = []
        for workload in load.workloads:
            placed = rng.choices(here, shares, k=counts[workload.name]) if here else []
            for lane in here:
                if count := placed.count(lane):
                    pace = workload.engine_ms_per_token / 1e3 * math.exp(shared) * slower[lane] * batch
                    rows.append(self._row(lane, workload, count, pace, late))
        self._clock += 1
        if rng.random() < load.missing.record:
            return None
        return GoodputMinute(minute=number, config=config, rows=tuple(rows))

    def _slower(self, lane: str) -> float:
        """Engine time of this lane over that of a usual one."""
        worse = self.row.worse_percent / 100 if lane in self.canaries and self.row.how == "Slow" else 0.0
        return math.exp(self._own[lane].step() + self._bias[lane]) / (1 - worse)

    def _arrivals(self) -> dict[str, int]:
        day = math.sin(2 * math.pi * self._clock / DAY_MINUTES)
        rate = self.load.requests_per_minute * (1 + self.load.day.rate_amplitude * day)
        found = {}
        for workload in self.load.workloads:
            share = workload.share * (1 - self.load.day.mix_amplitude * day if workload.name == "code" else 1)
            burst = self.rng.gammavariate(workload.burst_shape, 1 / workload.burst_shape)
            found[workload.name] = poisson(rate * share * burst, self.rng)
        return found

    def _here(self) -> list[str]:
        missing = self.load.missing
        for lane, left in self._away.items():
            if left > 0:
                self._away[lane] = left - 1
            elif self.rng.random() < missing.lane:
                self._away[lane] = 1 + int(self.rng.expovariate(1 / missing.lane_minutes))
        return [lane for lane, left in self._away.items() if left == 0]

    def _row(self, lane: str, workload: Workload, count: int, pace: float, late: float) -> LaneGoodput:
        rng, within, tokens, seconds = self.rng, 0, 0, 0.0
        lost = self.row.worse_percent / 100 if lane in self.canaries and self.row.how == "Late" else 0.0
        spread = workload.output_log_deviation
        middle = math.log(workload.output_tokens) - spread**2 / 2
        for _ in range(count):
            length = max(1, round(rng.lognormvariate(middle, spread)))
            seconds += length * pace * rng.lognormvariate(0.0, self.load.noise.request_deviation)
            if rng.random() >= late and rng.random() >= lost:
                within += 1
                tokens += length
        return LaneGoodput(
            lane=lane,
            workload=workload.name,
            requests=count,
            requests_within_slo=within,
            tokens_within_slo=tokens,
            engine_seconds=seconds,
        )


def poisson(mean: float, rng: Random) -> int:
    """Arrivals in a unit of time: exponential gaps, added up in pieces that do not underflow."""
    found, left = 0, mean
    while left > 0:
        piece = min(left, 500.0)
        left -= piece
        limit, product = math.exp(-piece), rng.random()
        while product > limit:
            found += 1
            product *= rng.random()
    return found
