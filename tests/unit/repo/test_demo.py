"""What `make demo` calls a success: each promise by itself, and the KV that has to move for the answers that came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from streamserve.v1 import common_pb2

Script = Callable[[str], ModuleType]
BLOCK_TOKENS = 128
# Tokens x (keys and values) x (layers x KV heads of the target, and of the draft) x head size x bytes of a bfloat16.
BLOCK_BYTES = BLOCK_TOKENS * 2 * (4 * 4 + 1 * 2) * 64 * 2
KEYS = {
    *("requests_ok", "requests_failed", "lanes_used", "requests_depth_changed", "kv_bytes", "kv_bytes_expected"),
    *("depths_seen", "config_ack_ms_max", "ttft_ms_p50", "tpot_ms_p50"),
}


@pytest.fixture
def demo(script: Script) -> ModuleType:
    return script("demo")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that keeps every promise, unless a case changes it. `depths` are those of each answer."""

    prompts: tuple[int, ...] = (100,) * 12 + (200,) * 12
    failed: int = 0
    lanes: tuple[str, ...] = ("lane-0", "lane-1")
    depths: tuple[int, ...] = (0, 3, 6)
    scheduled: tuple[int, ...] = (50, 0, 0, 7, 0, 0, 90)
    transfers: int = 24
    blocks: int = 36
    moved_bytes: int = 36 * BLOCK_BYTES
    acks: tuple[float, ...] = (40.0, 1_999.0)
    left: tuple[int, ...] = field(default=())

    def result(self, demo: ModuleType) -> dict[str, Any]:
        mask = sum(1 << depth for depth in self.depths)
        answers = [
            demo.Answer(
                "gsm8k",
                lane=self.lanes[n % len(self.lanes)],
                ttft_ms=10.0 * n,
                tpot_ms=2.0,
                usage=common_pb2.Usage(prompt_tokens=tokens, depths_seen_mask=mask),
                error="UNAVAILABLE" if n < self.failed else "",
            )
            for n, tokens in enumerate(self.prompts)
        ]
        counters = demo.Counters(self.moved_bytes, self.transfers, self.blocks, {}, self.scheduled)
        summary: dict[str, Any] = demo.summarize(
            answers, counters, list(self.acks), BLOCK_TOKENS, demo.bytes_per_block(BLOCK_TOKENS)
        )
        return summary

    def broken(self, demo: ModuleType) -> list[str]:
        left = [SimpleNamespace(pid=pid) for pid in self.left]
        broken: list[str] = demo.broken_promises(self.result(demo), list(self.acks), left)
        return broken


def test_a_run_that_keeps_every_promise_breaks_none(demo: ModuleType) -> None:
    assert Run().broken(demo) == []


BROKEN = {
    "23 answers are not 24": (
        Run(prompts=(100,) * 23, blocks=23, moved_bytes=23 * BLOCK_BYTES, transfers=23),
        "24 req",
    ),
    "a request that failed": (Run(prompts=(100,) * 24, failed=1, moved_bytes=24 * BLOCK_BYTES, blocks=24), "24 req"),
    "one lane did everything": (Run(lanes=("lane-1",)), "both lanes serve"),
    "a byte too few moved": (Run(moved_bytes=36 * BLOCK_BYTES - 1), "the bytes expected"),
    "a block too many moved": (Run(moved_bytes=37 * BLOCK_BYTES), "the bytes expected"),
    "one prompt was computed where it was decoded": (
        Run(transfers=23, blocks=34, moved_bytes=34 * BLOCK_BYTES),
        "the bytes expected",
    ),
    "a transfer that the schedulers saw and NIXL did not": (Run(transfers=25, blocks=38), "the bytes expected"),
    "two depths only": (Run(scheduled=(50, 0, 0, 0, 0, 0, 90)), "three depths"),
    "three depths without 0": (Run(scheduled=(0, 4, 4, 7, 0, 0, 0)), "three depths"),
    "every request ran at one side of the edit": (Run(depths=(3, 6)), "depth 0 and a depth above"),
    "a request saw nothing but depth 0": (Run(depths=(0,)), "depth 0 and a depth above"),
    "an acknowledgement after 2 s": (Run(acks=(40.0, 2_000.1)), "within 2 s"),
    "an edit that nobody acknowledged": (Run(acks=(40.0,)), "within 2 s"),
    "a process that is still there": (Run(left=(4711,)), "nothing is left running (4711)"),
}


@pytest.mark.parametrize(("run", "promise"), BROKEN.values(), ids=BROKEN.keys())
def test_one_broken_promise_is_told_and_no_other(demo: ModuleType, run: Run, promise: str) -> None:
    (told,) = run.broken(demo)
    assert promise in told


def test_a_demo_that_moved_nothing_fails_although_it_expected_nothing(demo: ModuleType) -> None:
    nothing = Run(prompts=(0,) * 24, transfers=0, blocks=0, moved_bytes=0)
    assert nothing.broken(demo) == ["KV moves"]


def test_the_last_line_has_exactly_the_figures_that_were_promised(demo: ModuleType) -> None:
    result = Run().result(demo)
    assert set(result) == KEYS
    assert result["depths_seen"] == [0, 3, 6]
    assert (result["ttft_ms_p50"], result["tpot_ms_p50"]) == (115.0, 2.0)


EXPECTED = {
    "a prompt takes its last block whole": (Run(prompts=(1, 128, 129, 257), transfers=4), 1 + 1 + 2 + 3),
    "an attempt that was given up had moved its KV too": (Run(prompts=(100, 200), transfers=3, blocks=5), 5),
    "transfers that the schedulers did not see do not make it less than the prompts": (
        Run(prompts=(100, 200), transfers=1, blocks=1),
        3,
    ),
    "with one transfer for each answer the schedulers are not asked": (
        Run(prompts=(100, 200), transfers=2, blocks=9),
        3,
    ),
}


@pytest.mark.parametrize(("run", "blocks"), EXPECTED.values(), ids=EXPECTED.keys())
def test_kv_bytes_expected_are_whole_blocks_of_every_layer_of_both_models(
    demo: ModuleType, run: Run, blocks: int
) -> None:
    assert run.result(demo)["kv_bytes_expected"] == blocks * BLOCK_BYTES


def test_the_edit_changes_the_bounds_of_the_example_and_nothing_else(
    demo: ModuleType, root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "streampair.yaml"
    shipped = (root / "examples" / "local" / "streampair.yaml").read_text()
    file.write_text(shipped)
    demo.set_depth(file, 0, 0)
    assert "depth: {min: 0, max: 0" in file.read_text()
    demo.set_depth(file, 1, 6)
    assert file.read_text() == shipped


def test_the_24_prompts_are_six_of_each_workload_and_take_turns(demo: ModuleType) -> None:
    workloads = [workload for workload, _ in demo.load_prompts()]
    assert workloads == ["gsm8k", "humaneval", "alpaca", "sum"] * 6
