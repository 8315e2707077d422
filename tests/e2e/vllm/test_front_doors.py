"""What clients meet at the front doors when real engines stand behind them: chat, stop strings, logprobs, refusals,
overload, and a lane that others load."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import grpc
import openai
import pytest
from real_fleet import Answer, Client, RealFleet
from tests.e2e.bad_input.test_requests import CASES, HTTP, REASON
from tests.support import calls
from tests.support.calls import Refusal

from streamserve.contract.errors import Overloaded

MESSAGES: Any = [
    {"role": "system", "content": "You answer in few words."},
    {"role": "user", "content": "Name three things that one finds on a beach."},
]
PROMPT = "A gardener has twelve pots and plants four seeds in each of them."
# Texts whose length in tokens is another one for a tokenizer than for the simulator, which takes bytes.
BY_BYTES = {
    "a prompt of text over the limit",
    "max_tokens that a text prompt leaves no room for",
    "min_tokens that a text prompt leaves no room for",
}
QUEUED, ASKED, ANSWER_TOKENS, PATIENCE_SECONDS = 4, 80, 48, 45.0
LOADED, STEER_SECONDS, LOADED_SECONDS, PER_SECOND, SHARE = "lane-0", 0.3, 2.0, 15.0, 0.9


@pytest.fixture
def client(fleet: RealFleet) -> Iterator[openai.OpenAI]:
    base = f"http://{fleet.ready['http']}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_chat_goes_through_the_models_template_and_streams_what_it_answers_at_once(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**options)
    events = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 3, "it came in pieces"
    assert whole.usage is not None and events[-1].usage is not None
    assert whole.usage.prompt_tokens == events[-1].usage.prompt_tokens
    raw = "".join(message["content"] for message in MESSAGES)
    plain = client.completions.create(model="tiny", prompt=raw, max_tokens=1)
    assert plain.usage is not None
    assert whole.usage.prompt_tokens > plain.usage.prompt_tokens, "the template adds who speaks"


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    text = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[24:29]
    stopped = client.completions.create(**options, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def test_what_was_drafted_and_moved_is_told_of_an_answer_that_a_stop_string_ends_too(
    fleet: RealFleet, client: openai.OpenAI
) -> None:
    """vLLM finds the string outside its engine core, whose scheduler learns of the end later than the client could."""
    options: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    text = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[80:86]
    answer = client.completions.create(**options, stop=[stop], extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    drafts = answer.usage.completion_tokens_details
    assert (drafts.accepted_prediction_tokens or 0) + (drafts.rejected_prediction_tokens or 0) > 0
    sampling: dict[str, object] = {"max_tokens": 64, "temperature": 0.0, "ignore_eos": True, "stop": [stop]}
    usages = [
        calls.generate(fleet.ready["grpc"], calls.request(PROMPT, **sampling), request_id="twice").usage
        for _ in range(2)
    ]
    assert all(usage.drafted_tokens > 0 for usage in usages)
    assert all(usage.depths_seen_mask > 0 and usage.kv_transfer_bytes > 0 for usage in usages)


@pytest.mark.parametrize("top", [0, 3])
def test_as_many_logprobs_as_were_asked_for_the_likeliest_first(client: openai.OpenAI, top: int) -> None:
    """Sampled hot, so that now and then the token is none of the likeliest: then vLLM itself hands out more."""
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=48,
        temperature=2.0,
        seed=11,
        logprobs=True,
        top_logprobs=top,
        extra_body={"ignore_eos": True},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    rows = logprobs.content
    assert "".join(row.token for row in rows) == answer.choices[0].message.content
    assert len(rows) == 48
    assert [len(row.top_logprobs) for row in rows] == [top] * 48
    assert all(a.logprob >= b.logprob for row in rows for a, b in pairwise(row.top_logprobs))
    unlikely = [row for row in rows if row.token not in {each.token for each in row.top_logprobs}]
    assert unlikely, "every token was among the likeliest: nothing is shown"
    assert all(not row.top_logprobs or row.logprob <= row.top_logprobs[-1].logprob for row in unlikely)


def test_penalties_change_what_is_repeated(client: openai.OpenAI) -> None:
    def answer(**penalties: float) -> str:
        made = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=64, temperature=0, extra_body={"ignore_eos": True}, **penalties
        )
        return made.choices[0].text

    usual, penalized = answer(), answer(frequency_penalty=2.0, presence_penalty=2.0)
    assert max(Counter(penalized.split()).values()) < max(Counter(usual.split()).values())


def test_what_cannot_be_served_is_refused_as_before_a_simulated_engine(fleet: RealFleet) -> None:
    """The table of tests/e2e/bad_input, whose vocabulary and length are this model's."""
    wrong: dict[str, object] = {}
    for name, case in CASES.items():
        if case.grpc is None or name in BY_BYTES:
            continue
        refused = calls.generate(fleet.ready["grpc"], case.grpc).error
        told = isinstance(refused, Refusal) and all(part in refused.message for part in case.says)
        if not told or (refused.code, refused.reason, refused.field) != (case.code, REASON[case.code], case.field):
            wrong[name] = refused
    assert wrong == {}
    assert HTTP[grpc.StatusCode.INVALID_ARGUMENT] == 400


async def test_twice_what_fits_is_refused_and_what_is_let_in_is_answered_in_time(fleet: RealFleet) -> None:
    """Two lanes that decode 16 each at once, and a short queue: the rest hears when to come back, at once."""
    await fleet.edit_and_wait(admission={"maxQueuedRequests": QUEUED})
    try:
        async with fleet.client() as client:
            queued, done = 0, asyncio.Event()

            async def watch() -> None:
                nonlocal queued
                while not done.is_set():
                    queued = max(queued, (await client.fleet()).queued_requests)
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            requests = (
                client.generate(f"{PROMPT} Number {n}.", max_tokens=ANSWER_TOKENS, seconds=PATIENCE_SECONDS)
                for n in range(ASKED)
            )
            answers: list[Answer] = await asyncio.gather(*requests)
            done.set()
            await watching
            served = [answer for answer in answers if answer.error is None]
            refused = [answer for answer in answers if answer.error is not None]
            print(f"{len(served)} served, {len(refused)} refused, at most {queued} queued")
            assert all(isinstance(answer.error, Overloaded) for answer in refused), [a.error for a in refused][:3]
            assert all(answer.error is not None and answer.error.retry_after_seconds for answer in refused)
            assert all(len(answer.token_ids) == ANSWER_TOKENS for answer in served)
            assert all(answer.seconds < PATIENCE_SECONDS for answer in served)
            assert len(served) >= 32 and len(refused) >= 16
            assert queued <= QUEUED
            await client.idle(40)
            left = await client.fleet()
            assert (left.queued_requests, left.running_requests) == (0, 0)
            assert (await client.generate(PROMPT, max_tokens=4)).error is None
    finally:
        await fleet.edit_and_wait(admission={"maxQueuedRequests": 1024})


async def test_new_requests_leave_a_lane_that_others_load_within_300_ms(fleet: RealFleet) -> None:
    """As tests/e2e/signals_steer, with an engine that really has the load: more than it runs at once, for seconds."""
    async with fleet.client() as client:
        worker = f"{LOADED}-decode-0"
        load = [asyncio.create_task(client.decode_alone(worker, number, max_tokens=1_500)) for number in range(24)]
        try:
            await _running(client, worker, 16)
            await asyncio.sleep(STEER_SECONDS)
            answers: list[asyncio.Task[Answer]] = []
            end = time.monotonic() + LOADED_SECONDS
            while time.monotonic() < end:
                answers.append(asyncio.create_task(client.generate(f"{PROMPT} {len(answers)}", max_tokens=8)))
                await asyncio.sleep(1 / PER_SECOND)
            lanes = Counter([(await answer).route.lane for answer in answers])
            errors = [answer.result().error for answer in answers if answer.result().error]
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        await client.idle(40)
    assert errors == []
    assert 1 - lanes[LOADED] / sum(lanes.values()) >= SHARE, lanes


async def _running(client: Client, worker: str, requests: int) -> None:
    async with asyncio.timeout(20):
        while True:
            if (await client.states())[worker].running_requests >= requests:
                return
            await asyncio.sleep(0.02)
