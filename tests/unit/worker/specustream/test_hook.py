"""The mixin over a stand-in for vLLM's scheduler: order of calls, truncation, and never an exception of ours."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamserve.worker.pipeserve import compat
from streamserve.worker.specustream.hook import SpecuStream
from streamserve.worker.specustream.policy import Adopted, Configure, DepthPolicy
from streamserve.worker.specustream.record import Record


@dataclass
class Request:
    request_id: str
    num_prompt_tokens: int = 10
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    spec_token_ids: list[int] = field(default_factory=list)
    prefill_stats: Any = None
    kv_transfer_params: Any = None
    answered: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.answered


@dataclass
class Output:
    num_scheduled_tokens: dict[str, int]
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    num_spec_tokens_to_schedule: int = 5

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


class PlainScheduler:
    """As much of vLLM's scheduler as the mixin touches; `planned` is the depth that vLLM's own code saw."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.vllm_config = SimpleNamespace(additional_config={"streamserve": settings})
        self.dynamic_sd_lookup = [6] * 9
        self.num_spec_tokens = 6
        self.block_size = 4
        self.max_model_len = 1000
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        pool = SimpleNamespace(get_num_free_blocks=lambda: 7, num_gpu_blocks=11)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.planned: list[int] = []
        self.freed: list[str] = []

    def get_request_counts(self) -> tuple[int, int]:
        return len(self.running), 0

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.running.append(request)

    def _update_after_schedule(self, output: Output) -> None:
        self.planned.append(output.num_spec_tokens_to_schedule)
        for name, tokens in output.num_scheduled_tokens.items():
            self.requests[name].num_computed_tokens += tokens

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> str:
        return "stats"

    def update_from_output(self, output: Output, model_output: Any) -> str:
        return "outputs"

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        request.num_computed_tokens = 0

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> str:
        self.freed.append(request.request_id)
        return "parameters"

    def finish_requests(self, *args: Any) -> list[Any]:
        return []


class Scheduler(SpecuStream, PlainScheduler):
    pass


def scheduler(tmp_path: Path, **settings: Any) -> tuple[Scheduler, Record]:
    policy = DepthPolicy("Fixed", 0, 6, 3).to_mapping()
    it = Scheduler({"record": str(tmp_path / "record"), "policy": policy, "role": "decode", **settings})
    return it, Record.open(tmp_path / "record")


def step(it: Scheduler, **tokens: int) -> None:
    output = Output(tokens)
    it._update_after_schedule(output)
    it.update_from_output(output, None)


def test_vllm_makes_its_placeholders_from_our_depth(tmp_path: Path) -> None:
    it, _ = scheduler(tmp_path)
    it.add_request(Request("a-12345678"))
    step(it, **{"a-12345678": 10})
    assert it.planned == [3]


def test_an_engine_without_variable_depth_is_left_alone(tmp_path: Path) -> None:
    it, _ = scheduler(tmp_path)
    it._steered = False
    it.add_request(Request("a"))
    step(it, a=10)
    assert it.planned == [5]


def test_adopting_a_lower_bound_cuts_drafts_that_wait(tmp_path: Path) -> None:
    it, record = scheduler(tmp_path)
    it.add_request(Request("a", spec_token_ids=[4, 5, 6]))
    it.add_request(Request("b", spec_token_ids=[7]))
    assert it.streamserve_configure(Configure(Adopted(4, 2), DepthPolicy("Goodput", 0, 2))) == Adopted(4, 2)
    assert [request.spec_token_ids for request in it.running] == [[4, 5], [7]]
    assert (record.snapshot().generation, record.snapshot().config_step) == (4, 2)


def test_cutting_does_not_touch_the_list_that_requests_share(tmp_path: Path) -> None:
    it, _ = scheduler(tmp_path)
    placeholders = [-1] * 6
    it.add_request(Request("a", spec_token_ids=placeholders))
    it.streamserve_configure(Configure(Adopted(1), DepthPolicy("Off")))
    assert placeholders == [-1] * 6
    assert it.running[0].spec_token_ids == []


def test_the_record_has_the_request_before_vllm_frees_it(tmp_path: Path) -> None:
    it, record = scheduler(tmp_path)
    request = Request("a-12345678")
    it.add_request(request)
    step(it, **{"a-12345678": 10})
    step(it, **{"a-12345678": 1})
    it.make_spec_decoding_stats(
        None,
        num_draft_tokens=3,
        num_accepted_tokens=2,
        num_invalid_spec_tokens={"a-12345678": 1},
        request_id="a-12345678",
    )
    assert it._free_request(request) == "parameters"
    entry = record.finished("a")
    assert entry is not None
    assert (entry.depth_mask, entry.drafted, entry.accepted, entry.steps) == (0b1000, 2, 2, 1)


def test_blocks_that_came_from_another_engine_are_counted(tmp_path: Path) -> None:
    it, record = scheduler(tmp_path)
    stats = SimpleNamespace(num_local_cached_tokens=4, num_external_cached_tokens=6)
    it.add_request(
        Request("a", num_computed_tokens=9, prefill_stats=stats, kv_transfer_params={"do_remote_prefill": True})
    )
    assert record.snapshot().waiting_prompt_tokens == 1
    step(it, a=1)
    figures = record.snapshot()
    assert (figures.transfers_received, figures.blocks_received, figures.prefill_tokens) == (1, 2, 0)
    assert (figures.free_blocks, figures.total_blocks) == (7, 10)


def test_what_a_preempted_request_computes_again_waits_and_is_prefill(tmp_path: Path) -> None:
    it, record = scheduler(tmp_path)
    request = Request("a")
    it.add_request(request)
    step(it, a=10)
    request.answered = 7
    it._preempt_request(request, 0.0)
    it._publish()
    assert record.snapshot().waiting_prompt_tokens == 17
    step(it, a=12)
    figures = record.snapshot()
    assert (figures.waiting_prompt_tokens, figures.prefill_tokens, figures.decode_steps) == (5, 22, 0)
    step(it, a=5)
    figures = record.snapshot()
    assert (figures.waiting_prompt_tokens, figures.prefill_tokens, figures.decode_steps) == (0, 27, 0)
    request.answered = 8
    step(it, a=1)
    assert record.snapshot().decode_steps == 1


def test_every_step_that_computes_has_its_own_ticket(tmp_path: Path) -> None:
    """A step without one of its own would take the time of the step after it."""
    it, _ = scheduler(tmp_path)
    request = Request("a", num_computed_tokens=9, answered=3)
    it.add_request(request)
    it._update_after_schedule(Output({"a": 1}))
    assert len(it._driver._tickets) == 1


@pytest.mark.parametrize("event", ["schedule", "judge", "output", "free", "add", "finish", "preempt"])
def test_whatever_breaks_in_us_vllm_goes_on(tmp_path: Path, event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it, _ = scheduler(tmp_path)
    request = Request("a")
    it.add_request(request)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("by design")

    ours = ("step_scheduled", "draft_judged", "step_done", "request_finished", "request_added", "prompt_progress")
    for name in (*ours, "publish"):
        monkeypatch.setattr(it._driver, name, broken)
    output = Output({"a": 10})
    match event:
        case "schedule":
            it._update_after_schedule(output)
            assert it.planned == [5]
        case "judge":
            drafts = {"num_draft_tokens": 1, "num_accepted_tokens": 1, "num_invalid_spec_tokens": None}
            assert it.make_spec_decoding_stats(None, **drafts, request_id="a") == "stats"
        case "output":
            assert it.update_from_output(output, None) == "outputs"
        case "free":
            assert it._free_request(request) == "parameters"
        case "add":
            it.add_request(Request("b"))
            assert "b" in it.requests
        case "preempt":
            request.num_computed_tokens = 10
            it._preempt_request(request, 0.0)
            assert request.num_computed_tokens == 0
        case _:
            assert it.finish_requests() == []


@pytest.mark.parametrize(
    ("internal", "external"),
    [("a-1234abcd", "a"), ("a-b-1234abcd", "a-b"), ("plain", "plain"), ("a-short", "a-short")],
)
def test_the_callers_id_is_what_vllm_was_given(internal: str, external: str) -> None:
    assert compat.external_id(internal) == external


def test_the_leases_of_prompts_held_under_an_id_end_and_no_other() -> None:
    def request(*, finished: bool) -> SimpleNamespace:
        return SimpleNamespace(is_finished=lambda: finished)

    requests = {
        "a#1-1234abcd": request(finished=True),
        "a#1-5678abcd": request(finished=False),
        "a#10-1234abcd": request(finished=True),
        "a#2-1234abcd": request(finished=True),
    }
    deadlines: dict[str, float] = {"a#2-1234abcd": 1e12}
    connector = SimpleNamespace(connector_scheduler=SimpleNamespace(_reqs_need_send=deadlines))
    before = time.perf_counter()
    assert compat.release_held(SimpleNamespace(requests=requests, connector=connector), "a#1") == 1
    assert before <= deadlines.pop("a#1-1234abcd") <= time.perf_counter()
    assert deadlines == {"a#2-1234abcd": 1e12}
    assert compat.release_held(SimpleNamespace(requests=requests, connector=None), "a#1") == 0
