"""Greedy text in float32 is plain vLLM's, token for token, whatever the depth does meanwhile."""

from __future__ import annotations

import asyncio
from itertools import cycle

import pytest
from plain_reference import TOKENS, Expected, Reference
from real_fleet import Answer, Client, RealFleet

AT_ONCE = 8
MARGIN = 1e-4
DIVERGENCES = 1
EDIT_SECONDS = 0.3
WINDOWS = ((0, 0), (5, 6), (2, 2), (1, 6), (4, 4))


async def ask(client: Client, rows: tuple[Expected, ...]) -> list[Answer]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(row: Expected) -> Answer:
        async with limit:
            return await client.generate(row.prompt, max_tokens=TOKENS, workload=row.workload)

    return list(await asyncio.gather(*map(one, rows)))


def check(rows: tuple[Expected, ...], answers: list[Answer]) -> None:
    """Every request remote and complete; at most one differs, where plain vLLM itself could not decide."""
    differing = []
    for row, answer in zip(rows, answers, strict=True):
        assert answer.error is None, f"{row.workload}: {answer.error}"
        assert len(answer.token_ids) == answer.usage.completion_tokens == TOKENS
        assert answer.usage.prompt_tokens == row.prompt_tokens
        assert answer.route.prefill_mode == "remote"
        if tuple(answer.token_ids) != row.token_ids:
            pairs = zip(answer.token_ids, row.token_ids, strict=True)
            first = next(i for i, (got, wanted) in enumerate(pairs) if got != wanted)
            differing.append((row.margins[first], row.workload, first, row.prompt[:60]))
    for margin, workload, first, prompt in differing:
        print(f"diverges at position {first}, margin of the two best logits {margin:.2e}: {workload}: {prompt!r}")
    assert all(margin <= MARGIN for margin, *_ in differing), differing
    assert len(differing) <= DIVERGENCES, differing


async def test_every_prompt_through_the_path_gives_the_text_of_plain_vllm(
    fleet: RealFleet, reference: Reference
) -> None:
    assert len(reference.greedy) >= 48
    async with fleet.client() as client:
        answers = await ask(client, reference.greedy)
    check(reference.greedy, answers)
    assert {answer.route.lane for answer in answers} == {"lane-0", "lane-1"}
    assert sum(answer.usage.accepted_tokens for answer in answers) > 0


@pytest.fixture
async def edits(fleet: RealFleet) -> asyncio.Task[None]:  # type: ignore[misc]
    """New depth bounds all the time; the bounds of before come back."""

    async def keep_editing() -> None:
        for low, high in cycle(WINDOWS):
            fleet.edit(speculation={"depth": {"min": low, "max": high, "fixed": low}})
            await asyncio.sleep(EDIT_SECONDS)

    task = asyncio.create_task(keep_editing())
    yield task
    task.cancel()
    await asyncio.wait([task])
    await fleet.edit_and_wait(speculation={"depth": {"min": 1, "max": 6, "fixed": 3}})


async def test_a_depth_that_changes_during_every_request_changes_no_text(
    fleet: RealFleet, reference: Reference, edits: asyncio.Task[None]
) -> None:
    async with fleet.client() as client:
        answers = await ask(client, reference.greedy)
    assert not edits.done(), edits
    check(reference.greedy, answers)
    still = [answer.depths for answer in answers if len(answer.depths) < 2]
    assert not still, f"requests that saw one depth only: {still}"
    assert any(0 in answer.depths for answer in answers)
