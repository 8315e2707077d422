import asyncio
from collections.abc import AsyncGenerator

import pytest
from benchkit import load
from benchkit.results import BenchError


class Server:
    """Answers each prompt with `messages` messages, and remembers what was asked."""

    def __init__(self, messages: int = 3, short_by: int = 0) -> None:
        self.messages, self.short_by = messages, short_by
        self.asked: list[tuple[str, int]] = []
        self.running = self.most = 0

    async def generate(self, slot: int, prompt: str, tokens: int) -> AsyncGenerator[int | None, None]:
        self.asked.append((prompt, tokens))
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(self.messages):
            await asyncio.sleep(0.001)
            yield None
        self.running -= 1
        yield tokens - self.short_by


async def send(server: Server, *, tokens: int | tuple[int, ...] = 10, warmup: int = 2) -> list[load.Sample]:
    return await load.closed_loop(
        server.generate, ["a", "b", "c"], concurrency=2, requests=6, warmup=warmup, tokens=tokens
    )


async def test_warm_up_is_sent_and_dropped() -> None:
    server = Server()
    samples = await send(server)
    assert len(server.asked) == 8
    assert [sample.key for sample in samples] == list(range(6))


async def test_a_measured_request_has_the_same_prompt_whatever_the_warm_up() -> None:
    first, second = Server(), Server()
    await send(first, warmup=0)
    await send(second, warmup=5)
    assert sorted(second.asked[5:]) == sorted(first.asked)


async def test_a_later_share_has_its_own_numbers_and_prompts() -> None:
    server = Server()
    samples = await load.closed_loop(
        server.generate, ["a", "b", "c", "d"], concurrency=1, requests=2, warmup=1, tokens=10, first=2
    )
    assert [sample.key for sample in samples] == [2, 3]
    assert [prompt for prompt, _ in server.asked] == ["b", "c", "d"]


async def test_as_many_run_at_once_as_asked_for_and_never_more() -> None:
    server = Server()
    await send(server)
    assert server.most == 2


async def test_lengths_are_taken_in_turn() -> None:
    server = Server()
    await send(server, tokens=(5, 9), warmup=0)
    assert sorted(tokens for _, tokens in server.asked) == [5, 5, 5, 9, 9, 9]


async def test_times_are_positive_and_tpot_is_per_token_not_per_message() -> None:
    (sample, *_) = await send(Server(messages=2), tokens=101, warmup=0)
    assert sample.ttft_ms >= 1.0
    assert 0.01 <= sample.tpot_ms < 1.0


async def test_an_answer_of_another_length_ends_the_benchmark() -> None:
    with pytest.raises(BenchError, match="9 tokens instead of 10"):
        await send(Server(short_by=1))


def test_prompts_alternate_between_the_workloads() -> None:
    texts = load.prompts(2)
    assert len(texts) == 8
    assert len(set(texts)) == 8
    assert not set(texts) & set(load.prompts(2, skip=2))


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(BenchError, match="fewer than"):
        load.prompts(1_000)
