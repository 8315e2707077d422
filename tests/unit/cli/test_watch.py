"""A file that changes under `up`: every version once, also one that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamserve.cli.up import preflight, watch
from streamserve.cli.up.taking import Current, EditTaker
from streamserve.contract import hot
from streamserve.contract.streampair import StreamPair
from streamserve.runtime.tasks import Tasks

GOOD = b"apiVersion: streamserve.io/v1alpha1\nkind: StreamPair\nmetadata: {name: a}\nspec: {model: {name: org/m}}\n"


async def test_every_version_once_and_a_file_that_stays_away_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "pair.yaml"
    file.write_bytes(GOOD)
    versions = watch.watch(file, watch.Overrides(), GOOD)

    async def following() -> str:
        async with asyncio.timeout(20):
            version = (await anext(versions)).version
        return version[0].format() if isinstance(version, list) else version.metadata.name

    waiting = asyncio.create_task(following())
    await asyncio.sleep(0.3)
    file.unlink()
    assert (await waiting).startswith("cannot be read any more: put it back")
    waiting = asyncio.create_task(following())
    await asyncio.sleep(watch.GONE_SECONDS + 0.5)
    assert not waiting.done()
    file.write_bytes(GOOD.replace(b"name: a", b"name: b"))
    assert await waiting == "b"
    await versions.aclose()


class Taker:
    """The taker of edits under `--lanes 3`, fed by hand."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.overrides = watch.Overrides(lanes=3)
        first = self.parse(1)
        self.current = Current.first(first, hot.runtime_config(first, "u", 1))
        self.tasks = Tasks("test")
        self.said: list[str] = []
        fake: Any = SimpleNamespace(children=[], addresses=lambda revision: {}, up=False, write=_nothing, echo=_nobody)
        self.taker = EditTaker(
            file,
            self.overrides,
            self.current,
            lanes=fake,
            router=fake,
            push=fake,
            ask_engine=_nothing,
            tasks=self.tasks,
            changed=lambda: None,
            echoed=lambda seconds: None,
            say=self.said.append,
        )

    def parse(self, lanes: int) -> StreamPair:
        content = GOOD.replace(b"spec: {", f"spec: {{engine: {{kind: Simulator}}, lanes: {lanes}, ".encode())
        found = watch.parse(content, self.file, self.overrides)
        assert isinstance(found, StreamPair), found
        return found

    async def save(self, lanes: int) -> int:
        """How many lanes there are to be then."""
        await self.taker._take_over(self.parse(lanes), 0.0)
        return self.current.pair.spec.lanes


async def _nothing(*_: Any) -> None: ...


async def _nobody(*_: Any) -> Any:
    return SimpleNamespace(applied=set(), wanted=frozenset(), missing=[], seconds=0.0)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [((1, 2, 1), [3, 2, 1]), ((2, 3, 1), [2, 3, 1]), ((3, 1), [3, 1])],
    ids=["the file's first value", "the flag's own value in between", "the flag's own value at once"],
)
async def test_lanes_of_the_command_line_hold_until_the_files_value_is_edited_and_never_again(
    saved: tuple[int, ...], wanted: list[int], tmp_path: Path
) -> None:
    one = Taker(tmp_path / "pair.yaml")
    assert [await one.save(lanes) for lanes in saved] == wanted
    await one.tasks.stop()


async def test_an_edit_of_lanes_that_is_refused_leaves_those_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Taker(tmp_path / "pair.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(preflight, "memory_problem", lambda *_, **__: "too little memory")
        assert await one.save(9) == 3
    assert await one.save(1) == 3
    await one.tasks.stop()
