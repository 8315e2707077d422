"""The driver under vLLM's events: bounds hold from adoption on, failures cost no step, counts are right."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.worker.specustream.driver import Driver
from streamserve.worker.specustream.policy import Adopted, Configure, DepthPolicy
from streamserve.worker.specustream.record import Record, RecordWriter, RequestRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def driver(
    policy: DepthPolicy | None = None,
    *,
    writer: RecordWriter | None = None,
    clock: Callable[[], float] | None = None,
    built: int = 6,
    prefill_only: bool = False,
) -> Driver:
    return Driver(
        policy=policy or DepthPolicy("Goodput", 1, 6),
        adopted=Adopted(1, 0),
        built_depth=built,
        writer=writer,
        rng=Random(0),
        clock=clock or Clock(),
        prefill_only=prefill_only,
    )


def step(it: Driver, *requests: str, prefill: int = 0, verified: int = 0) -> int:
    depth = it.step_scheduled(
        decoding=requests, sampling=len(requests), prefill_tokens=prefill, verified=verified, static_depth=4
    )
    it.step_done()
    return depth


@given(
    policies=st.lists(
        st.builds(
            lambda name, bounds, fixed: DepthPolicy(name, min(bounds), max(bounds), fixed),
            st.sampled_from(["Goodput", "Fixed", "Off"]),
            st.tuples(st.integers(0, 16), st.integers(0, 16)),
            st.integers(0, 16),
        ),
        min_size=1,
        max_size=8,
    ),
    built=st.integers(0, 16),
)
@settings(max_examples=50, deadline=None)
def test_no_step_after_adoption_uses_an_older_bound(policies: list[DepthPolicy], built: int) -> None:
    it = driver(built=built)
    for generation, policy in enumerate(policies, start=2):
        it.configure(Configure(Adopted(generation), policy))
        for _ in range(12):
            assert step(it, "a") <= min(policy.ceiling, built)


def test_an_older_version_changes_nothing() -> None:
    it = driver()
    assert it.configure(Configure(Adopted(3, 1), DepthPolicy("Off"))) == Adopted(3, 1)
    assert it.configure(Configure(Adopted(3, 0), DepthPolicy("Fixed", 0, 6, 6))) == Adopted(3, 1)
    assert it.configure(Configure(Adopted(2, 9), DepthPolicy("Fixed", 0, 6, 6))) == Adopted(3, 1)
    assert step(it, "a") == 0


def test_a_step_of_the_same_generation_is_newer() -> None:
    it = driver()
    it.configure(Configure(Adopted(3, 0), DepthPolicy("Off")))
    it.configure(Configure(Adopted(3, 1), DepthPolicy("Fixed", 0, 6, 2)))
    assert step(it, "a") == 2


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (DepthPolicy("Goodput", 0, 2), 2),
        (DepthPolicy("Goodput", 5, 6), 5),
        (DepthPolicy("Goodput", 1, 6), 4),
        (DepthPolicy("Fixed", 0, 6, 1), 1),
        (DepthPolicy("Off"), 0),
    ],
    ids=["above them", "below them", "within them", "above the fixed depth", "switched off"],
)
def test_the_depth_shown_of_an_idle_engine_moves_into_new_bounds(
    tmp_path: Path, policy: DepthPolicy, want: int
) -> None:
    writer = RecordWriter(tmp_path / "record")
    it, reader = driver(DepthPolicy("Fixed", 0, 6, 4), writer=writer), Record.open(tmp_path / "record")
    step(it, "a")
    it.idle()
    it.configure(Configure(Adopted(2), policy))
    it.publish()
    assert reader.snapshot().depth == want


def test_the_prefill_side_never_drafts() -> None:
    it = driver(DepthPolicy("Fixed", 2, 6, 4), prefill_only=True)
    assert [step(it, "a") for _ in range(20)] == [0] * 20
    it.configure(Configure(Adopted(2), DepthPolicy("Fixed", 2, 6, 4)))
    assert step(it, "a") == 0
    assert it.adopted == Adopted(2)


def test_a_law_that_raises_leaves_the_static_depth_within_bounds_and_says_so(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "record")
    it = driver(DepthPolicy("Goodput", 0, 3), writer=writer)

    class Broken:
        def choose(self, load: object) -> None:
            raise ZeroDivisionError("by design")

    it._law = Broken()  # type: ignore[assignment]
    assert [step(it, "a") for _ in range(3)] == [3, 3, 3]
    it.publish()
    figures = Record.open(tmp_path / "record").snapshot()
    assert figures.fallback == "ZeroDivisionError: by design"
    assert figures.fallbacks == 3
    it.configure(Configure(Adopted(2), DepthPolicy("Fixed", 0, 6, 2)))
    it.publish()
    assert step(it, "a") == 2
    assert Record.open(tmp_path / "record").snapshot().fallback == ""


def test_a_fixed_depth_is_the_bound_of_what_stands_in_for_a_law_that_raises() -> None:
    it = driver(DepthPolicy("Fixed", 0, 6, 2))
    it.failed(ZeroDivisionError("by design"))
    assert step(it, "a") == 2


def test_a_request_record_holds_depths_drafts_and_what_was_pulled(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "record")
    it = driver(DepthPolicy("Fixed", 0, 6, 3), writer=writer)
    it.request_added("a-12345678", 1)
    it.request_received("a-12345678", 256, 2)
    it.prompt_progress("a-12345678", 0)
    step(it, "a-12345678")
    it.draft_judged("a-12345678", 3, 2)
    it.configure(Configure(Adopted(2), DepthPolicy("Off")))
    step(it, "a-12345678", verified=3)
    it.request_finished("a-12345678", "a")
    it.publish()
    reader = Record.open(tmp_path / "record")
    assert reader.finished("a") == RequestRecord(0b1001, 3, 2, 2, 256, 2, added_at=100.0)
    figures = reader.snapshot()
    assert figures.depth_steps[:4] == (1, 0, 0, 1)
    assert (figures.drafted_by_position[:4], figures.accepted_by_position[:4]) == ((1, 1, 1, 0), (1, 1, 0, 0))
    assert (figures.drafted_tokens, figures.accepted_tokens) == (3, 2)
    assert figures.emitted_tokens == 4
    assert (figures.transfers_received, figures.blocks_received) == (1, 2)
    assert figures.waiting_prompt_tokens == 0


def test_waiting_prompt_tokens_follow_arrival_progress_and_end(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "record")
    it, reader = driver(writer=writer), Record.open(tmp_path / "record")

    def waiting() -> int:
        it.publish()
        return reader.snapshot().waiting_prompt_tokens

    it.request_added("a", 500)
    it.request_added("b", 300)
    assert waiting() == 800
    it.prompt_progress("a", 100)
    assert waiting() == 400
    it.request_finished("b", "b")
    assert waiting() == 100
    it.prompt_progress("a", 0)
    assert waiting() == 0


def test_only_clean_steps_teach_step_times(tmp_path: Path) -> None:
    clock = Clock()
    it = driver(DepthPolicy("Fixed", 0, 6, 2), clock=clock)
    times = it._knowledge.step_times

    def after(seconds: float, **kind: int) -> int:
        it.step_scheduled(
            decoding=["a"],
            sampling=1,
            prefill_tokens=kind.get("prefill", 0),
            verified=kind.get("verified", 2),
            static_depth=0,
        )
        clock.now += seconds
        it.step_done()
        return times.count(0, 2)

    assert after(0.01) == 0, "the first step after idling is not clean"
    assert after(0.01) == 0, "the first clean one at this depth builds its kernels"
    assert after(0.01) == 1
    assert after(0.01, prefill=64) == 1, "prefill in it"
    assert after(0.01, verified=0) == 1, "verified at another depth"
    it.idle()
    assert after(0.01) == 1
    assert after(0.01) == 2
    assert times.curve(0, 2)[2] == pytest.approx(0.01)


def test_an_abort_between_scheduling_and_output_disturbs_nothing() -> None:
    it = driver()
    it.request_added("a", 10)
    it.step_scheduled(decoding=["a"], sampling=1, prefill_tokens=0, verified=0, static_depth=0)
    it.request_finished("a", "a")
    it.draft_judged("a", 2, 1)
    it.step_done()
    it.step_done()
    it.request_finished("a", "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "Goodputt"},
        {"min_depth": 3, "max_depth": 2},
        {"max_depth": 17},
        {"fixed_depth": -1},
        {"itl_seconds": float("nan")},
        {"probe_fraction": 2.0},
        {"depth": 3},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DepthPolicy.from_mapping(wrong)


def test_a_configure_message_reads_back_as_itself() -> None:
    message = Configure(Adopted(7, 3), DepthPolicy("Fixed", 1, 4, 2, 0.02, 0.1))
    assert Configure.from_json(message.to_json()) == message


@pytest.mark.parametrize("payload", ["", "[]", "{}", '{"policy": 3}', '{"policy": {"policy": "No"}}'])
def test_garbage_is_no_configure_message(payload: str) -> None:
    with pytest.raises(ValueError):
        Configure.from_json(payload)


def test_the_cold_first_steps_of_an_engine_are_no_rate(tmp_path: Path) -> None:
    """They allocate and build kernels; what the router would make of them keeps it away from this worker."""
    writer = RecordWriter(tmp_path / "record")
    clock = Clock()
    it = driver(writer=writer, clock=clock)

    def prefill(seconds: float) -> float:
        it.step_scheduled(decoding=[], sampling=1, prefill_tokens=100, verified=0, static_depth=0)
        clock.now += seconds
        it.step_done()
        it.idle()
        it.publish()
        return Record.open(tmp_path / "record").snapshot().prefill_tokens_per_second

    assert [prefill(2.0), prefill(1.0)] == [0.0, 0.0]
    assert prefill(0.1) == pytest.approx(1_000)
