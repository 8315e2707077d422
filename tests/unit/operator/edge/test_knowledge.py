"""When an operator that has started may lead, and in which namespaces it decides anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from streamserve.operator.edge import watch
from streamserve.operator.edge.knowledge import Knowledge

KINDS = ("pairs", "pods")


@dataclass
class Bench:
    """Two kinds in two namespaces, or in all."""

    namespaces: tuple[str | None, ...] = ("a", "b")
    told: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watches = {(kind, where): watch.Health(kind, where) for where in self.namespaces for kind in KINDS}
        self.knowledge = Knowledge(list(self.watches.values()), on_known=self.told.append)

    def listed(self, *watches: tuple[str, str | None]) -> None:
        for each in watches:
            self.watches[each].listed, self.watches[each].refused = True, False
            self.knowledge.news()

    def failed(self, *watches: tuple[str, str | None], refused: bool) -> None:
        for each in watches:
            self.watches[each].refused = refused
            self.knowledge.news()

    async def may_lead(self) -> bool:
        waiting = asyncio.create_task(self.knowledge.enough())
        await asyncio.sleep(0)
        waiting.cancel()
        return waiting.done()


async def test_one_leads_once_each_kind_was_listed_in_each_namespace() -> None:
    bench = Bench()
    bench.listed(("pairs", "a"), ("pods", "a"), ("pairs", "b"))
    assert bench.told == ["a"]
    assert not await bench.may_lead()
    bench.listed(("pods", "b"))
    assert bench.told == ["a", "b"]
    assert await bench.may_lead()
    assert bench.knowledge.unknown() == []


async def test_a_namespace_that_is_refused_holds_nobody_back_and_is_not_known_before_the_last_kind_is() -> None:
    bench = Bench()
    bench.failed(("pairs", "b"), ("pods", "b"), refused=True)
    bench.listed(("pairs", "a"), ("pods", "a"))
    assert await bench.may_lead()
    assert (bench.knowledge.knows("a"), bench.knowledge.knows("b")) == (True, False)
    bench.listed(("pairs", "b"))
    assert bench.knowledge.unknown() == ["b"], "its pods would seem to be gone"
    bench.listed(("pods", "b"))
    assert bench.knowledge.knows("b")
    assert bench.told == ["a", "b"]


async def test_a_server_that_is_away_is_waited_for_also_where_it_refused_before() -> None:
    bench = Bench()
    bench.failed(("pairs", "b"), ("pods", "b"), refused=True)
    bench.failed(("pods", "b"), refused=False)
    bench.listed(("pairs", "a"), ("pods", "a"))
    assert not await bench.may_lead()
    bench.failed(("pods", "b"), refused=True)
    assert await bench.may_lead()


@pytest.mark.parametrize("namespaces", [("a", "b"), (None,)], ids=["all of those listed", "every namespace"])
async def test_who_is_refused_everywhere_waits(namespaces: tuple[str | None, ...]) -> None:
    bench = Bench(namespaces)
    bench.failed(*bench.watches, refused=True)
    assert not await bench.may_lead()
    assert not bench.knowledge.knows("a")


async def test_who_has_begun_to_lead_is_not_held_back_by_what_fails_later() -> None:
    bench = Bench()
    bench.failed(("pairs", "b"), ("pods", "b"), refused=True)
    bench.listed(("pairs", "a"), ("pods", "a"))
    bench.failed(*bench.watches, refused=False)
    assert await bench.may_lead()
    assert bench.knowledge.knows("a")


async def test_with_every_namespace_listed_each_is_known() -> None:
    bench = Bench((None,))
    bench.listed(*bench.watches)
    assert bench.knowledge.knows("a")
    assert bench.told == [None]
