"""What ended in each minute while a canary is held, by lane and workload: the records on which it is judged.

    within SLO    ttft <= the workload's ttft_ms, and tpot <= its tpot_ms where there was a second token
    counted       answers that a decode worker ended, placed under the configuration in force, by a worker whose last
                  word was that it obeys that configuration; at the minute in which they ended
    recorded      minutes in which one configuration with a canary was in force from the beginning to the end

A configuration without a canary is not measured: nobody would read it. Names of workloads are a client's to choose, so
past MAX_WORKLOADS they count as `default`; those with targets of their own always count as themselves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from streamserve.contract import signals as codec
from streamserve.contract.goodput import GoodputMinute, LaneGoodput
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, Slo
from streamserve.contract.signals import SignalsError

MAX_WORKLOADS: Final = 64
MAX_CELLS: Final = 4_096
MAX_WAITING: Final = 60
MAX_ENGINE_SECONDS: Final = 86_400.0
OTHER: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An answer that is whole. `config`: in force when its last attempt was placed; `signals`: its worker's, packed,
    as they came with the last message."""

    lane: str
    workload: str
    config: ConfigId
    signals: bytes
    engine_seconds: float
    tokens: int
    ttft_seconds: float | None
    tpot_seconds: float | None


@dataclass(slots=True)
class _Cell:
    requests: int = 0
    requests_within_slo: int = 0
    tokens_within_slo: int = 0
    engine_seconds: float = 0.0


class GoodputMeter:
    """`clock` in seconds since the epoch. Nothing here raises."""

    def __init__(self, config: RuntimeConfig, *, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._minute = self._now()
        self._whole = False
        self._cells: dict[tuple[str, str], _Cell] = {}
        self._workloads = _named(config)
        self._over: deque[GoodputMinute] = deque(maxlen=MAX_WAITING)

    def applied(self, config: RuntimeConfig) -> None:
        """It is in force from now on."""
        self._turn()
        self._config, self._whole, self._workloads = config, False, _named(config)
        self._cells.clear()

    def ended(self, answer: Ended) -> None:
        if self._config.canary is None or answer.config != self._config.id:
            return
        self._turn()
        if not self._obeyed(answer.signals) or not 0.0 <= answer.engine_seconds <= MAX_ENGINE_SECONDS:
            return
        key = (answer.lane, self._known(answer.workload))
        if key not in self._cells and len(self._cells) >= MAX_CELLS:
            return
        cell = self._cells.setdefault(key, _Cell())
        cell.requests += 1
        cell.engine_seconds += answer.engine_seconds
        if within(self._config.slo_of(answer.workload), answer.ttft_seconds, answer.tpot_seconds):
            cell.requests_within_slo += 1
            cell.tokens_within_slo += answer.tokens

    def take(self) -> list[GoodputMinute]:
        """The records of minutes that are over, each once."""
        self._turn()
        taken = list(self._over)
        self._over.clear()
        return taken

    def _turn(self) -> None:
        """Close the minute when the clock has left it. One into which a clock was set back is not whole."""
        now = self._now()
        if now == self._minute:
            return
        if self._whole and self._cells and self._config.canary is not None:
            self._over.append(GoodputMinute(minute=self._minute, config=self._config.id, rows=self._rows()))
        self._whole = now > self._minute
        self._minute = now
        self._cells.clear()

    def _rows(self) -> tuple[LaneGoodput, ...]:
        return tuple(
            LaneGoodput(
                lane=lane,
                workload=workload,
                requests=cell.requests,
                requests_within_slo=cell.requests_within_slo,
                tokens_within_slo=cell.tokens_within_slo,
                engine_seconds=cell.engine_seconds,
            )
            for (lane, workload), cell in sorted(self._cells.items())
        )

    def _obeyed(self, packed: bytes) -> bool:
        try:
            said = codec.decode(packed)
        except SignalsError:
            return False
        return (said.config_generation, said.config_step) == self._config.id.order

    def _known(self, workload: str) -> str:
        if workload not in self._workloads:
            if len(self._workloads) >= MAX_WORKLOADS:
                return OTHER
            self._workloads.add(workload)
        return workload

    def _now(self) -> int:
        return max(0, math.floor(self._clock() / 60))


def within(slo: Slo, ttft_seconds: float | None, tpot_seconds: float | None) -> bool:
    """Whether an answer with these times kept its targets."""
    if ttft_seconds is None or 1_000 * ttft_seconds > slo.ttft_ms:
        return False
    return tpot_seconds is None or 1_000 * tpot_seconds <= slo.tpot_ms


def _named(config: RuntimeConfig) -> set[str]:
    return {OTHER, *config.workload_slos}
