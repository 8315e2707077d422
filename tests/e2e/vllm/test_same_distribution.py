"""Sampled tokens come from plain vLLM's distribution, and the test would see it if they did not."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from distribution import compare
from plain_reference import Reference
from real_fleet import Answer, RealFleet

REQUESTS = 5_000
AT_ONCE = 32
SEEDS = range(10)
BIAS = 0.03


def test_the_statistic_sees_three_points_on_one_token_and_nothing_where_nothing_is(reference: Reference) -> None:
    shares = Counter(first for first, _ in reference.sampled)
    token, count = shares.most_common(1)[0]
    assert count < 0.25 * len(reference.sampled), "one token dominates: nothing else is tested"

    def sample(seed: int, bias: float) -> list[tuple[int, int]]:
        rng = Random(seed)
        drawn = rng.choices(reference.sampled, k=REQUESTS)
        # Chosen so that the token's share rises by `bias` in all.
        return [(token if rng.random() < bias / (1 - count / len(reference.sampled)) else a, b) for a, b in drawn]

    caught = [seed for seed in SEEDS if compare(reference.sampled, sample(seed, BIAS)).different]
    blamed = [seed for seed in SEEDS if compare(reference.sampled, sample(seed, 0.0)).different]
    assert len(caught) >= 9, f"a bias of {BIAS:.0%} on token {token} is seen in {len(caught)} of {len(SEEDS)} seeds"
    assert not blamed, f"samples without a bias are called biased: {blamed}"


async def test_positions_0_and_1_of_sampled_requests_are_distributed_as_in_plain_vllm(
    fleet: RealFleet, reference: Reference
) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    async with fleet.client() as client:

        async def one() -> Answer:
            async with limit:
                return await client.generate(
                    reference.sampled_prompt, temperature=reference.temperature, max_tokens=2, min_tokens=2
                )

        answers = await asyncio.gather(*(one() for _ in range(REQUESTS)))
    errors = [answer.error for answer in answers if answer.error is not None]
    assert not errors, f"{len(errors)} failed, the first with {errors[0]!r}"
    assert all(answer.route.prefill_mode == "remote" for answer in answers)
    drafted = sum(answer.usage.drafted_tokens for answer in answers)
    accepted = sum(answer.usage.accepted_tokens for answer in answers)
    assert 0 < accepted < drafted, "both outcomes of rejection sampling have to occur"
    verdict = compare(reference.sampled, [(a.token_ids[0], a.token_ids[1]) for a in answers])
    print(f"{verdict}; accepted {accepted} of {drafted}")
    assert not verdict.different, verdict
