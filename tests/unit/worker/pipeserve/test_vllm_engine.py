"""The engine over a stand-in for AsyncLLM: what is told of a request when it ends, and what becomes of errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from streamserve.contract.errors import InvalidRequest
from streamserve.contract.sampling import Sampling
from streamserve.worker.pipeserve import compat, vllm_engine, vllm_requests
from streamserve.worker.pipeserve.engine import ChatPrompt, Job, KvGeometry, Outcome, Prompt, TextPrompt, TokenPrompt
from streamserve.worker.pipeserve.vllm_engine import VllmEngine
from streamserve.worker.pipeserve.vllm_meters import Meters
from streamserve.worker.specustream import hook
from streamserve.worker.specustream.driver import Driver
from streamserve.worker.specustream.policy import Adopted, DepthPolicy
from streamserve.worker.specustream.record import Record, RecordWriter

JOB = Job(request_id="r#1", prompt=TokenPrompt([1, 2, 3]), sampling=Sampling(max_tokens=8, stop=("end",)))
KV = KvGeometry(block_tokens=4, bytes_per_block=64, total_blocks=8, target_layers=1, draft_layers=1, dtype="float32")
UNTIL_THE_CORE_KNOWS = 0.02


@dataclass
class Tokenizer:
    """Three tokens of any text, in a vocabulary whose longest entry has 1,000 characters; knows who asked."""

    asked_by: list[int] = field(default_factory=list)

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "a" * 1_000: 1}

    def encode(self, text: str) -> list[int]:
        self.asked_by.append(threading.get_ident())
        return [1, 2, 3]

    def apply_chat_template(self, messages: object, **_: object) -> list[int]:
        return self.encode("")


@dataclass
class Llm:
    """Three tokens, then the end, of which the scheduler learns `late` or before."""

    scheduler: Driver
    stop_reason: str | int | None
    late: bool
    drafted: int = 5
    records: bool = True
    errored: bool = False
    ended: list[asyncio.Task[None]] = field(default_factory=list)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    told: list[tuple[str, ...]] = field(default_factory=list)
    vllm_config: ClassVar[Any] = SimpleNamespace(
        model_config=SimpleNamespace(get_vocab_size=lambda: 100, max_model_len=64),
        scheduler_config=SimpleNamespace(max_num_seqs=4, policy="fcfs"),
    )

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    async def generate(self, prompt: object, params: object, request_id: str, priority: int) -> AsyncIterator[Any]:
        self.scheduler.request_added(request_id, 3)
        self.scheduler.draft_judged(request_id, self.drafted, 2)
        if self.late:
            self.ended.append(asyncio.create_task(self._end(request_id, UNTIL_THE_CORE_KNOWS)))
        else:
            await self._end(request_id, 0)
        completion = SimpleNamespace(
            token_ids=[7, 8, 9], text="abc", finish_reason="stop", stop_reason=self.stop_reason, logprobs=None
        )
        yield SimpleNamespace(outputs=[completion], num_cached_tokens=0)

    async def abort(self, request_id: str) -> None:
        """Of a request that the core has finished: nothing is done."""
        self.told.append(("abort", request_id))

    @property
    def engine_core(self) -> Llm:
        return self

    async def call_utility_async(self, *call: str) -> None:
        self.told.append(call)

    async def _end(self, request_id: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.records:
            self.scheduler.request_finished(request_id, request_id)
        self.scheduler.publish()


MakeEngine = Callable[..., tuple[VllmEngine, Llm]]


@pytest.fixture
def make_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    # What would load vLLM, which takes seconds.
    monkeypatch.setattr(compat, "version", lambda: "0")
    monkeypatch.setattr(compat, "engine_input", list)
    monkeypatch.setattr(compat, "is_engine_death", lambda error: False)
    monkeypatch.setattr(compat, "is_bad_request", lambda error: isinstance(error, ValueError))
    monkeypatch.setattr(vllm_requests, "answer_params", lambda *_, **__: None)

    def make(
        stop_reason: str | int | None = None, *, late: bool = False, role: str = "decode", **llm: Any
    ) -> tuple[VllmEngine, Llm]:
        scheduler = Driver(
            policy=DepthPolicy("Off"),
            adopted=Adopted(1),
            built_depth=0,
            writer=RecordWriter(tmp_path / "record"),
            rng=None,  # type: ignore[arg-type]
            clock=vllm_engine.time.monotonic,
        )
        inner = Llm(scheduler, stop_reason, late, **llm)
        record = Record.open(tmp_path / "record")
        return VllmEngine(inner, KV, record, Meters(), role=role, max_depth=0), inner

    return make


async def answered(engine: VllmEngine, job: Job = JOB) -> Outcome:
    chunks = [chunk async for chunk in engine.generate(job)]
    outcome = chunks[-1].outcome
    assert outcome is not None
    return outcome


ENDS: dict[str, tuple[str | int | None, bool]] = {
    "by the end of the sequence": (None, False),
    "by a token that stops": (2, False),
    "by a stop string that the scheduler has heard of": ("end", False),
    "by a stop string that the scheduler hears of later": ("end", True),
}


@pytest.mark.parametrize(("reason", "late"), ENDS.values(), ids=ENDS.keys())
async def test_the_drafts_of_an_answer_are_told_however_it_ends(
    make_engine: MakeEngine, reason: str | int | None, late: bool
) -> None:
    outcome = await answered(make_engine(reason, late=late)[0])
    assert (outcome.drafted_tokens, outcome.accepted_tokens, outcome.recorded) == (5, 2, True)


async def test_a_request_id_that_comes_again_is_not_told_what_was_drafted_before(make_engine: MakeEngine) -> None:
    engine, llm = make_engine("end", late=True)
    assert (await answered(engine)).drafted_tokens == 5
    llm.drafted = 4
    assert (await answered(engine)).drafted_tokens == 4


async def test_what_the_scheduler_never_told_is_unknown_and_not_zero(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "_RECORD_SECONDS", 0.05)
    engine, _ = make_engine("end", records=False)
    outcome = await answered(engine)
    assert (outcome.recorded, outcome.drafted_tokens) == (False, 0)


async def test_parameters_that_vllm_refuses_are_the_clients_fault(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("top_k must be an integer")

    monkeypatch.setattr(vllm_requests, "answer_params", refuse)
    with pytest.raises(InvalidRequest, match="vLLM refuses the request: top_k must be an integer"):
        await answered(make_engine()[0])


async def test_an_aborted_prompt_is_let_go_of_though_nobody_has_read_that_it_was_computed(
    make_engine: MakeEngine,
) -> None:
    engine, llm = make_engine(role="prefill")
    await engine.abort("r#1")
    assert llm.told == [("abort", "r#1"), (hook.RELEASE, "r#1")]


async def test_an_engine_that_holds_no_prompts_is_asked_to_let_go_of_none(make_engine: MakeEngine) -> None:
    engine, llm = make_engine(role="decode")
    await engine.abort("r#1")
    assert llm.told == [("abort", "r#1")]


# The engine takes 64 tokens with the answer.
LONG = {
    "a text": TextPrompt("a" * 63_001),
    "a chat, whatever its parts": ChatPrompt((("user", "a" * 40_000), ("user", "a" * 23_000))),
}


@pytest.mark.parametrize("prompt", LONG.values(), ids=LONG)
async def test_what_is_too_long_for_any_tokenizer_is_refused_before_one_has_read_it(
    make_engine: MakeEngine, prompt: Prompt
) -> None:
    engine, llm = make_engine()
    with pytest.raises(InvalidRequest, match=r"the prompt has at least 64 tokens, .* send at most 63"):
        await answered(engine, replace(JOB, prompt=prompt))
    assert llm.tokenizer.asked_by == []


# What is asked, and whether it may be tokenized where everybody is served.
LENGTHS: dict[str, tuple[Prompt, bool]] = {
    "a short text": (TextPrompt("a" * 20_000), True),
    "a long text": (TextPrompt("a" * 20_001), False),
    "a short chat": (ChatPrompt((("user", "hi"),)), True),
    "a chat with a long message": (ChatPrompt((("user", "hi"), ("user", "a" * 20_000))), False),
    "a chat of many messages": (ChatPrompt((("user", "a" * 10),) * 2_000), False),
}


@pytest.mark.parametrize(("prompt", "here"), LENGTHS.values(), ids=LENGTHS)
async def test_what_takes_long_to_tokenize_keeps_nobody_waiting(
    make_engine: MakeEngine, prompt: Prompt, here: bool
) -> None:
    engine, llm = make_engine()
    await answered(engine, replace(JOB, prompt=prompt))
    assert [thread == threading.get_ident() for thread in llm.tokenizer.asked_by] == [here]
