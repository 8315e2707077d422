"""A file that changes under `up`: every version once, also one that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from streamserve.cli.up import watch

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
