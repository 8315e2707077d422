"""Files that the machine does not take for a while: said once, written again, and nothing stops for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamserve.cli.up import watch
from streamserve.cli.up.files import KeptFile
from streamserve.cli.up.push import ConfigPush
from streamserve.cli.up.running import Options, Running
from streamserve.contract import hot, runtime_config
from streamserve.contract.keys import Keyspace
from streamserve.contract.streampair import StreamPair

MakePair = Callable[..., StreamPair]
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.mark.parametrize("thread", [False, True])
async def test_a_file_that_cannot_be_written_is_said_once_and_written_when_it_can(tmp_path: Path, thread: bool) -> None:
    file, said = tmp_path / "away" / "file.json", list[str]()
    kept = KeptFile(file, said.append)

    async def write(data: bytes) -> bool:
        return await kept.write_in_thread(data) if thread else kept.write(data)

    assert not await write(b"1")
    assert not await write(b"2")
    assert said == [f"cannot write {file}: No such file or directory; mend that, it is tried again until it works"]
    file.parent.mkdir()
    assert await write(b"2")
    assert file.read_bytes() == b"2"
    assert said[1:] == [f"{file} is written again"]
    before = file.stat().st_ino
    assert await write(b"2")
    assert file.stat().st_ino == before, "it held that already"


async def test_a_machine_without_a_thread_to_write_in_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    said: list[str] = []
    kept = KeptFile(tmp_path / "file.json", said.append)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "to_thread", refuse)
        assert not await kept.write_in_thread(b"1")
    assert "can't start new thread" in said[0]
    assert await kept.write_in_thread(b"1")


async def test_a_configuration_that_the_disk_does_not_take_is_kept_until_it_does(
    tmp_path: Path, make_pair: MakePair
) -> None:
    file, said = tmp_path / "config" / "config.json", list[str]()
    push = ConfigPush(Keyspace("local", "tiny"), NOWHERE, file, said.append)
    for generation in (1, 2):
        await push.write(hot.runtime_config(make_pair(), "u", generation))
    assert len(said) == 1
    keeping = asyncio.create_task(push.keep(interval_seconds=0.01))
    file.parent.mkdir()
    for _ in range(500):
        if file.exists():
            break
        await asyncio.sleep(0.01)
    assert runtime_config.decode(file.read_bytes()).id.generation == 2
    keeping.cancel()
    await asyncio.wait([keeping])
    assert keeping.cancelled()
    await push.close()


class Fleet:
    """The parts of Running that a plan needs, none of them started."""

    def __init__(self, folder: Path, pair: StreamPair) -> None:
        self.said: list[str] = []
        self.fleet_file = folder / "fleet" / "fleet.json"
        self.ready_file = folder / "ready" / "ready.json"
        reporter: Any = SimpleNamespace(say=self.said.append, show=lambda standing: None)
        options = Options(file=folder / "pair.yaml", grpc="127.0.0.1:0", http="127.0.0.1:0", ready_file=self.ready_file)
        config = hot.runtime_config(pair, "u", 1)
        self.running = Running(options, watch.Overrides(), pair, config, folder, reporter)
        router: Any = SimpleNamespace(info={"grpc": "127.0.0.1:2", "http": "127.0.0.1:3"})
        self.fleet: dict[str, object] = {"workers": []}
        parts: dict[str, Any] = {
            "_router": router,
            "_lanes": SimpleNamespace(
                observe=lambda fleet: (), fleet=lambda: self.fleet, lanes={}, children=[], carry_out=lambda *_: None
            ),
            "_view": SimpleNamespace(fleet=SimpleNamespace()),
            "_site": SimpleNamespace(pair="tiny", uid="u", fleet_file=self.fleet_file),
            "_fleet_file": KeptFile(self.fleet_file, self.said.append),
            "_endpoint": SimpleNamespace(address="127.0.0.1:1"),
        }
        for name, part in parts.items():
            setattr(self.running, name, part)


async def test_a_plan_goes_on_without_its_files_and_writes_them_when_it_can(
    tmp_path: Path, make_pair: MakePair
) -> None:
    one = Fleet(tmp_path, make_pair({"spec.lanes": 0}))
    for _ in range(3):
        one.running._plan_once()
    assert [line.partition(":")[0] for line in one.said] == [
        f"cannot write {one.fleet_file}",
        f"cannot write {one.ready_file}",
    ]
    for file in (one.fleet_file, one.ready_file):
        file.parent.mkdir()
    one.running._plan_once()
    one.running._plan_once()
    assert json.loads(one.fleet_file.read_bytes()) == {"workers": []}
    assert json.loads(one.ready_file.read_bytes())["grpc"] == "127.0.0.1:2"
    assert sum("ready in" in line for line in one.said) == 1
