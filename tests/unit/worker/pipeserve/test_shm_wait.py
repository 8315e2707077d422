"""Readers of vLLM's own shared-memory queue, with the queue's writer in the same process."""

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.worker.pipeserve import shm_wait

queues: Any = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")


class Pair:
    """A queue, and the messages that a thread has read from it, each with the CPU time of its wait in seconds."""

    def __init__(self, messages: int) -> None:
        self.writer = queues.MessageQueue(1, 1)
        self.read: list[tuple[Any, float, float]] = []
        self._messages = messages
        self._reader = threading.Thread(target=self._run, daemon=True)
        self._reader.start()
        self.writer.wait_until_ready()

    def _run(self) -> None:
        reader = queues.MessageQueue.create_from_handle(self.writer.export_handle(), 0)
        reader.wait_until_ready()
        for _ in range(self._messages):
            before = time.thread_time()
            message = reader.dequeue(timeout=30)
            self.read.append((message, time.monotonic(), time.thread_time() - before))

    def end(self) -> list[tuple[Any, float, float]]:
        self._reader.join(30)
        assert not self._reader.is_alive()
        return self.read


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Pair]]:
    """Makes a queue whose readers sleep."""
    monkeypatch.setattr(queues.SpinCondition, "wait", queues.SpinCondition.wait)
    assert shm_wait.sleep_at_once() and shm_wait.sleep_at_once(), "these tests are for vLLM's CPU build"
    yield Pair


def test_a_reader_that_waits_takes_next_to_no_time_of_its_core(queue: Callable[[int], Pair]) -> None:
    pair = queue(3)
    for number in range(3):
        pair.writer.enqueue(number)
        time.sleep(0.5)
    read = pair.end()
    assert [message for message, _, _ in read] == [0, 1, 2]
    assert max(cpu for _, _, cpu in read[1:]) < 0.1, "half a second of yielding"


def test_a_message_whose_word_was_lost_is_read_after_an_eighth_of_the_wait(
    queue: Callable[[int], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = queue(2)
    pair.writer.enqueue("said")
    monkeypatch.setattr(queues.SpinCondition, "notify", lambda _: None)
    time.sleep(1.5)
    pair.writer.enqueue("not said")
    written = time.monotonic()
    read = pair.end()
    assert [message for message, _, _ in read] == ["said", "not said"]
    assert read[1][1] - written < 1.0, "vLLM looks again after five seconds"


def test_messages_in_quick_succession_all_arrive_in_order(queue: Callable[[int], Pair]) -> None:
    pair = queue(500)
    began = time.monotonic()
    for number in range(500):
        pair.writer.enqueue(number, timeout=30)
    assert [message for message, _, _ in pair.end()] == list(range(500))
    assert time.monotonic() - began < 20


@given(st.floats(0, 1e6), st.none() | st.integers(0, 10_000))
def test_a_reader_looks_again_within_its_share_and_the_callers_limit(waited: float, limit: int | None) -> None:
    bound = shm_wait.bound_ms(waited, limit)
    assert 0 <= bound <= max(1.0, waited * 1000 * shm_wait.LOOK_AGAIN_AFTER)
    assert limit is None or bound <= limit
    assert bound >= 1 or limit == 0
