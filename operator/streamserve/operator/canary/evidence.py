"""What both arms of a canary did in the same minutes, by workload.

Records of all routers are added up by minute, lane by lane, into two arms. A minute counts from the first
configuration of the hold on; each record names the configuration that its whole minute was under, so no clock of a
router is compared with ours. A router that delivers a minute twice is counted once. A lane that is missing in a minute
is missing in its arm's tokens and in its arm's engine-seconds alike, and biases neither.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamserve.contract.goodput import GoodputMinute

Records = Mapping[str, Sequence[GoodputMinute]]
"""By router."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload of one arm in one minute. `tokens` are those of requests within their SLO."""

    requests: int = 0
    tokens: int = 0
    engine_seconds: float = 0.0

    def __add__(self, other: Cell) -> Cell:
        return Cell(
            self.requests + other.requests, self.tokens + other.tokens, self.engine_seconds + other.engine_seconds
        )


@dataclass(frozen=True, slots=True)
class Minute:
    """Both arms by workload. `number` counts minutes from the epoch."""

    number: int
    canary: Mapping[str, Cell]
    control: Mapping[str, Cell]

    @property
    def ends_seconds(self) -> float:
        return 60.0 * (self.number + 1)


def minutes(records: Records, uid: str, since: tuple[int, int], canaries: Collection[str]) -> tuple[Minute, ...]:
    """In order, from configuration `since` = (generation, step) on. A lane that is no canary is control."""
    arms: dict[int, tuple[dict[str, Cell], dict[str, Cell]]] = {}
    for record in _once(records):
        if record.config.uid != uid or record.config.order < since:
            continue
        canary, control = arms.setdefault(record.minute, ({}, {}))
        for row in record.rows:
            arm = canary if row.lane in canaries else control
            cell = Cell(row.requests, row.tokens_within_slo, row.engine_seconds)
            arm[row.workload] = arm.get(row.workload, Cell()) + cell
    return tuple(Minute(number, *arms[number]) for number in sorted(arms))


def _once(records: Records) -> Iterable[GoodputMinute]:
    """Each router's minutes once; of two for one minute the later one."""
    for delivered in records.values():
        yield from {record.minute: record for record in delivered}.values()
