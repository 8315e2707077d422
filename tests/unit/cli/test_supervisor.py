"""Children that die, hang, leave grandchildren behind: with real, tiny processes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from streamserve.cli.up import supervisor
from streamserve.cli.up.commands import Command
from streamserve.cli.up.last_words import words_of
from streamserve.cli.up.supervisor import Child, Reaper, State, rotate

READY = "import json, pathlib; pathlib.Path({ready!r}).write_text(json.dumps({{'grpc': 'x:1'}}));"


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    one = Reaper()
    await one.start()
    yield one
    await one.stop()


MakeChild = Callable[..., Child]


@pytest.fixture
async def make_child(tmp_path: Path, reaper: Reaper) -> AsyncIterator[MakeChild]:
    made: list[Child] = []

    def make(code: str, said: list[str] | None = None) -> Child:
        ready = tmp_path / "ready.json"
        child = Child(
            Command(name="c", argv=(sys.executable, "-c", code.format(ready=str(ready))), ready_file=ready),
            log=tmp_path / "c.log",
            environment=dict(os.environ),
            reaper=reaper,
            rng=Random(1),
            changed=lambda: None,
            say=(said if said is not None else []).append,
        )
        made.append(child)
        child.start()
        return child

    yield make
    for child in made:
        await child.stop(1.0)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_child_is_up_when_its_ready_file_can_be_read(make_child: MakeChild) -> None:
    child = make_child(READY + "import time; time.sleep(60)")
    assert child.state is State.STARTING
    await until(lambda: child.up)
    assert child.info == {"grpc": "x:1"}
    await child.stop(5.0)
    assert child.state is State.STOPPED


async def test_a_child_whose_engine_refuses_its_arguments_says_so(make_child: MakeChild) -> None:
    child = make_child("print('error: no such flag'); raise SystemExit(3)")
    await until(lambda: child.refusal != "")
    assert child.refusal == "no such flag"


async def test_a_child_that_dies_is_started_again_and_its_last_words_are_told(make_child: MakeChild) -> None:
    said: list[str] = []
    child = make_child("print('the disk is full'); raise SystemExit(4)", said)
    await until(lambda: child.restarts >= 2)
    assert "ended with status 4" in said[0]
    assert "the disk is full" in said[0]
    assert child.failures >= 2


async def test_a_child_that_the_machine_could_not_start_is_said_and_started_again(
    make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, starts = asyncio.create_subprocess_exec, 0

    async def second_fails(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise OSError(12, "Cannot allocate memory")
        return await start(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", second_fails)
    said: list[str] = []
    child = make_child("print('the disk is full'); raise SystemExit(4)", said)
    await until(lambda: len(said) == 2, seconds=3.0)
    assert said[1].startswith("c: could not be started: [Errno 12] Cannot allocate memory; starts again in ")
    assert child.failures == 2
    assert child.last_words == "[Errno 12] Cannot allocate memory", "not those of the process before"
    await until(lambda: len(said) == 3, seconds=3.0)
    assert starts == 3
    assert "ended with status 4" in said[2]
    assert "the disk is full" in said[2]


async def test_a_child_that_ignores_sigterm_is_killed_when_its_grace_is_over(make_child: MakeChild) -> None:
    child = make_child("import signal, time; signal.signal(15, signal.SIG_IGN);" + READY + "time.sleep(60)")
    await until(lambda: child.up)
    began, pid = time.monotonic(), child.pid
    await child.stop(0.3)
    assert time.monotonic() - began < 3
    assert gone(pid)


async def test_a_hurry_ends_the_grace(make_child: MakeChild) -> None:
    child = make_child("import signal, time; signal.signal(15, signal.SIG_IGN);" + READY + "time.sleep(60)")
    await until(lambda: child.up)
    hurry = asyncio.Event()
    hurry.set()
    began = time.monotonic()
    await child.stop(30.0, hurry)
    assert time.monotonic() - began < 3


async def test_grandchildren_do_not_outlive_a_child_that_died(make_child: MakeChild) -> None:
    child = make_child(
        "import os, subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('grandchild', p.pid, flush=True);" + READY + "time.sleep(60)"
    )
    await until(lambda: child.up)
    grandchild = int(words_of(child.log).split()[1])
    os.kill(child.pid, 9)
    await until(lambda: gone(grandchild))


async def test_the_reaper_ends_what_is_left_when_its_input_ends(tmp_path: Path) -> None:
    reaper = Reaper()
    await reaper.start()
    stubborn = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
        start_new_session=True,
        stdout=asyncio.subprocess.PIPE,
    )
    assert stubborn.stdout is not None
    assert await asyncio.wait_for(stubborn.stdout.readline(), 10) == b"deaf\n"
    reaper.add(stubborn.pid)
    await reaper.stop()
    assert await asyncio.wait_for(stubborn.wait(), 5) == -9


async def test_the_guard_kills_its_program_with_its_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import os, subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-m', 'streamserve.cli.up.guard', '--parent', str(os.getpid()), '--',"
        " 'sleep', '60']);"
        "time.sleep(1); print(p.pid, flush=True); time.sleep(60)",
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    program = int(await asyncio.wait_for(parent.stdout.readline(), 10))
    await until(lambda: psutil.Process(program).name() == "sleep")
    parent.kill()
    await parent.wait()
    await until(lambda: gone(program), 5.0)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", ""),
        ("one\n\n  \n", "one"),
        ('{"level": "ERROR", "message": "no such flag"}\n', "no such flag"),
        ('{"broken\n', '{"broken'),
        ("[1, 2]\n", "[1, 2]"),
    ],
)
def test_last_words(tmp_path: Path, text: str, want: str) -> None:
    log = tmp_path / "x.log"
    log.write_text(text)
    assert words_of(log) == want


VLLM_GAVE_UP = "error: vLLM did not start: Engine core initialization failed. See root cause above. Failed core: {}"


@pytest.mark.parametrize(
    ("above", "cause"),
    [
        (
            '{"level": "CRITICAL", "message": "cannot listen: Address in use"}\nTraceback',
            "cannot listen: Address in use",
        ),
        (
            "(EngineCore pid=9) ERROR 11-23 19:28:50 [core.py:1188] ValueError: no memory for one block\n"
            "(EngineCore pid=9) INFO 11-23 19:28:51 [core.py:9] shutting down\n"
            "RuntimeError: Engine core initialization failed. See root cause above.",
            "ValueError: no memory for one block",
        ),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:1')", "zmq.error.ZMQError: Address"),
    ],
)
def test_words_that_point_up_are_told_with_the_cause_above(tmp_path: Path, above: str, cause: str) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"{above}\n{VLLM_GAVE_UP}\n")
    assert words_of(log).startswith(f"{VLLM_GAVE_UP} (cause: {cause}")


def test_words_that_point_up_to_nothing_stay_as_they_are(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"all is well\n{VLLM_GAVE_UP}\n")
    assert words_of(log) == VLLM_GAVE_UP


async def test_the_words_of_a_death_stay_while_the_next_start_writes_its_own(
    make_child: MakeChild, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    child = make_child(
        f"import pathlib, time; p = pathlib.Path({str(first)!r});"
        "again = p.exists(); p.touch(); print('loading' if again else 'the port is taken', flush=True);"
        "time.sleep(60 if again else 0); raise SystemExit(4)"
    )
    await until(lambda: words_of(child.log) == "loading")
    assert child.last_words == "the port is taken"


def test_a_long_log_keeps_one_older_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    log = tmp_path / "x.log"
    with log.open("ab") as writer:
        writer.write(b"0123456789ab")
        writer.flush()
        rotate(log)
        writer.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "x.log.1").read_bytes() == b"0123456789ab"
