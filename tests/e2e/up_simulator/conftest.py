"""`streamserve up --engine Simulator` as a user starts it, and what a test wants to ask about it.

Every process that it starts inherits MARK in its environment, so that leftovers are found whatever they are called;
redis-server overwrites its environment with its title, but works in the run folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import command_line

from streamserve.runtime import grpc as transport
from streamserve.v1 import common_pb2, inference_pb2, inference_pb2_grpc

EXAMPLE = Path(__file__).parents[3] / "examples" / "local" / "streampair.yaml"
MARK = "STREAMSERVE_TEST_MARK"
START_SECONDS = 60.0


class Up:
    """One running `up` with its file, its lines and its processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "streampair.yaml"
        text = EXAMPLE.read_text().replace("../models", str(EXAMPLE.parents[1] / "models"))
        self.file.write_text(text)
        self.ready_file = folder / "ready.json"
        self.log = folder / "up.log"
        self.mark = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None
        self.run_dir = "/nowhere"

    def start(self, *options: str, ready: bool = True) -> Up:
        argv = [sys.executable, "-m", "streamserve.cli.main", "up", "-f", str(self.file), "--engine", "Simulator"]
        addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file", str(self.ready_file)]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*argv, *addresses, *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, MARK: self.mark},
                start_new_session=True,
            )
        if ready:
            self.until(self.ready_file.exists, START_SECONDS, "the ready file")
            self.run_dir = self.ready["run_dir"]
        return self

    @property
    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n" + "\n".join(self.lines()[-40:])
            assert self.process is None or self.process.poll() is None or what == "the end", self.lines()[-40:]
            time.sleep(0.05)
        return found

    def line(self, *parts: str, after: int = 0, seconds: float = 30.0) -> str:
        """Wait for a line that has all of these parts."""

        def find() -> str | None:
            return next((line for line in self.lines()[after:] if all(part in line for part in parts)), None)

        return str(self.until(find, seconds, f"a line with {parts}"))

    def edit(self, old: str, new: str, *, in_place: bool = False) -> int:
        """Save an edited file, by rename as most editors do or in place. Returns the number of lines told before."""
        before, text = len(self.lines()), self.file.read_text()
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
        if in_place:
            self.file.write_text(text)
        else:
            beside = self.file.with_suffix(".new")
            beside.write_text(text)
            beside.replace(self.file)
        return before

    def toggle(self, one: str, other: str) -> int:
        """Save the file with whichever of the two it does not have now."""
        return self.edit(one, other) if one in self.file.read_text() else self.edit(other, one)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that began from this `up`, itself included."""
        return [process for process in psutil.process_iter() if _is_ours(process, self.mark, self.run_dir)]

    def find(self, *words: str) -> psutil.Process:
        """The one process whose command line has these words."""
        found = [process for process in self.with_words(*words) if process.pid != self.pid]
        assert len(found) == 1, (words, found)
        return found[0]

    def with_words(self, *words: str) -> list[psutil.Process]:
        """Those whose command line has all of these words."""
        return [p for p in self.processes() if all(word in " ".join(command_line(p)) for word in words)]

    def states(self) -> dict[str, tuple[str, str]]:
        """Lane → (state, revision), as the router sees it; empty while the router does not answer."""
        done = run_cli("top", "--once", "--json", "--server", self.ready["grpc"])
        if done.returncode != 0:
            return {}
        return {lane["name"]: (lane["state"], lane["revision"]) for lane in json.loads(done.stdout)["lanes"]}

    def workers_up(self) -> int:
        """As `up` itself has it, which is what an edit's echo is waited for."""
        return len(json.loads((Path(self.run_dir) / "fleet" / "fleet.json").read_text())["workers"])

    def all_ready(self, lanes: int) -> bool:
        states = self.states()
        return len(states) == lanes and all(state == "Ready" for state, _ in states.values())

    def stop(self, signum: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(30)

    def clean_up(self) -> None:
        for process in self.processes():
            process.kill()
        if self.process is not None:
            self.process.wait(10)
        shutil.rmtree(self.run_dir, ignore_errors=True)


def _is_ours(process: psutil.Process, mark: str, run_dir: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(MARK) == mark or process.cwd().startswith(run_dir)
    except psutil.Error:
        return False


def run_cli(*words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamserve.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Stream:
    """Clients that never pause: each sends a request as soon as its last one ended, and checks every position."""

    def __init__(self, address: str, clients: int = 4, max_tokens: int = 40) -> None:
        self._address = address
        self._clients = clients
        self._max_tokens = max_tokens
        self.answered = 0
        self.failures: list[str] = []
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Stream:
        self._task = asyncio.gather(*(self._client() for _ in range(self._clients)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.wait_for(self._task, 60)

    async def _client(self) -> None:
        async with transport.channel(self._address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while not self._stop.is_set():
                try:
                    await self._one(stub)
                    self.answered += 1
                except Exception as error:
                    self.failures.append(repr(error))
                    await asyncio.sleep(0.1)

    async def _one(self, stub: Any) -> None:
        request = inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(text="Once upon a time there was a lighthouse"),
            sampling=common_pb2.SamplingParams(max_tokens=self._max_tokens, ignore_eos=True),
        )
        position = 0
        async for chunk in stub.Generate(request, timeout=60):
            assert chunk.first_token_index == position, (chunk.first_token_index, position)
            position += len(chunk.token_ids)
        assert position == self._max_tokens, position


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Not started yet. Nothing of it is left after the test."""
    one = Up(tmp_path)
    yield one
    one.clean_up()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two lanes for the tests of a module that leave them as they found them."""
    one = Up(tmp_path_factory.mktemp("shared")).start()
    yield one
    one.clean_up()


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_cli


@pytest.fixture(scope="session")
def stream() -> type[Stream]:
    return Stream
