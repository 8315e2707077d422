"""Engine arguments are asked about before a lane is stopped: which are asked, what is told, what follows."""

from __future__ import annotations

import asyncio
import errno
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamserve.cli.up import engine_check, preflight, watch
from streamserve.cli.up.commands import Site
from streamserve.cli.up.engine_check import Answer
from streamserve.cli.up.supervisor import Reaper
from streamserve.cli.up.taking import Current, EditTaker
from streamserve.contract import hot
from streamserve.contract.streampair import StreamPair
from streamserve.runtime.tasks import Tasks

BAD = "vLLM has no engine argument max-model-lne; did you mean max-model-len?"

ASKED = {
    "the same file": ({}, False),
    "a hot field": ({"spec.speculation.depth.max": 3}, False),
    "a number of lanes": ({"spec.lanes": 3}, False),
    "a flag of both roles": ({"spec.engine.args.max-num-seqs": "8"}, True),
    "a flag of one role": ({"spec.decode.engine.args.max-num-seqs": "8"}, True),
    "another draft model": ({"spec.speculation.draft.name": "org/other"}, True),
    "a deeper engine": ({"spec.speculation.maxDepth": 7}, True),
    "a simulator": ({"spec.engine.kind": "Simulator", "spec.engine.args.max-num-seqs": "8"}, False),
}


@pytest.mark.parametrize(("edits", "asked"), ASKED.values(), ids=ASKED)
def test_vllm_is_asked_when_its_flags_change_and_only_then(edits: dict[str, Any], asked: bool, make_pair: Any) -> None:
    assert engine_check.is_new(make_pair(), make_pair(edits)) is asked


def test_coming_from_a_simulator_vllm_is_asked(make_pair: Any) -> None:
    assert engine_check.is_new(make_pair({"spec.engine.kind": "Simulator"}), make_pair())


@pytest.mark.parametrize(
    ("edits", "answers", "told"),
    [
        ({}, [None, None], ()),
        ({}, [BAD, BAD], (f"spec.engine.args: {BAD}",)),
        ({}, [None, BAD], (f"spec.engine.args (for decode): {BAD}",)),
        ({"spec.prefill.engine.args.x": "1"}, [BAD, None], (f"spec.prefill.engine.args: {BAD}",)),
    ],
)
def test_a_reason_is_told_once_under_its_field(
    edits: dict[str, Any], answers: list[str | None], told: tuple[str, ...], make_pair: Any
) -> None:
    assert engine_check.refusals(make_pair(edits), answers) == told


CHECKERS = {
    "an answer": ("import sys, json; n = len(json.load(sys.stdin)); print(json.dumps({'refused': ['no'] * n}))", "no"),
    "a crash": ("raise SystemExit('vLLM is broken')", "vLLM is broken"),
    "no end": ("import time; time.sleep(60)", "no answer within 1 s"),
}


@pytest.mark.parametrize(("code", "said"), CHECKERS.values(), ids=CHECKERS)
async def test_the_answer_of_the_process_that_is_asked(
    code: str, said: str, tmp_path: Path, make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("logs", "tmp"):
        (tmp_path / name).mkdir()
    real = asyncio.create_subprocess_exec
    started = []

    async def instead(*_: str, **options: Any) -> Any:
        started.append(await real(sys.executable, "-c", code, **options))
        return started[0]

    site = Site(pair="p", uid="u", run_dir=tmp_path, redis_url="redis://h", environment={})
    monkeypatch.setattr(asyncio, "create_subprocess_exec", instead)
    answer = await engine_check.ask(site, Reaper(), make_pair(), timeout_seconds=1.0)
    if code.startswith("import sys"):
        assert answer == Answer(refused=("spec.engine.args: no",))
    else:
        assert answer.refused == ()
        assert answer.unknown.startswith(said)
    assert started[0].returncode is not None


REFUSALS = {"no file can be opened": "logs", "no process can be started": "process"}


@pytest.mark.parametrize("what", REFUSALS.values(), ids=REFUSALS)
async def test_a_machine_that_cannot_ask_now_leaves_the_answer_open(
    what: str, tmp_path: Path, make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: str, **__: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    if what == "process":
        (tmp_path / "logs").mkdir()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    site = Site(pair="p", uid="u", run_dir=tmp_path, redis_url="redis://h", environment={})
    answer = await engine_check.ask(site, Reaper(), make_pair())
    assert answer.refused == ()
    assert answer.unknown.startswith("the check could not be started: ")


class Push:
    def __init__(self) -> None:
        self.written: list[int] = []

    async def write(self, config: Any) -> None:
        self.written.append(config.id.generation)

    async def echo(self, *_: Any) -> Any:
        return SimpleNamespace(applied=set(), wanted=frozenset(), missing=[], seconds=0.0)


OUTCOMES = {
    "refused": (Answer(refused=(f"spec.engine.args: {BAD}",)), [], f"  spec.engine.args: {BAD}"),
    "accepted": (Answer(), [2], "cold, replaces lane after lane"),
    "could not be asked": (Answer(unknown="no answer within 120 s"), [2], "could not be checked, goes on without: no"),
}


@pytest.mark.parametrize(("answer", "written", "said"), OUTCOMES.values(), ids=OUTCOMES)
async def test_a_cold_edit_waits_for_the_answer(
    answer: Answer, written: list[int], said: str, tmp_path: Path, make_pair: Callable[..., StreamPair]
) -> None:
    file = tmp_path / "pair.json"
    old, new = make_pair({"spec.lanes": 0}), make_pair({"spec.lanes": 0, "spec.engine.args.max-num-seqs": "8"})
    current = Current.first(old, hot.runtime_config(old, "u", 1))
    told: list[str] = []
    push, tasks = Push(), Tasks("test")

    async def ask(pair: StreamPair) -> Answer:
        assert current.pair is old, "nothing is taken over before the answer"
        assert pair.spec.engine.args["max-num-seqs"] == "8"
        return answer

    taker = _taker(file, current, push, tasks, ask, told)
    await taker._take_over(new, 0.0)
    await tasks.stop()
    assert push.written == written
    assert (current.pair is new) == bool(written)
    assert any(said in line for line in told), told
    assert json.dumps(told).count("asks vLLM") == 1


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("no thread")])
async def test_an_edit_is_taken_over_although_the_machine_cannot_be_looked_at(
    error: Exception, tmp_path: Path, make_pair: Callable[..., StreamPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(preflight, "gather", refuse)
    old, new = make_pair({"spec.lanes": 1}), make_pair({"spec.lanes": 2})
    current = Current.first(old, hot.runtime_config(old, "u", 1))
    told: list[str] = []
    push, tasks = Push(), Tasks("test")
    taker = _taker(tmp_path / "pair.json", current, push, tasks, lambda _: asyncio.sleep(0, Answer()), told)
    await taker._take_over(new, 0.0)
    await tasks.stop()
    assert current.pair is new
    assert push.written == [2]
    assert str(error) in told[0]


def _taker(
    file: Path,
    current: Current,
    push: Any,
    tasks: Tasks,
    ask: Callable[[StreamPair], Awaitable[Answer]],
    told: list[str],
) -> EditTaker:
    lanes: Any = SimpleNamespace(children=[], addresses=lambda revision: {})
    router: Any = SimpleNamespace(up=False)
    return EditTaker(
        file,
        watch.Overrides(),
        current,
        lanes=lanes,
        router=router,
        push=push,
        ask_engine=ask,
        tasks=tasks,
        changed=lambda: None,
        echoed=lambda seconds: None,
        say=told.append,
    )
