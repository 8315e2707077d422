"""The simulated canary: the load is what its file says, and the law judges it as the issue asks, in small."""

from __future__ import annotations

import statistics
from pathlib import Path
from random import Random

import canary
import pytest
from benchkit import canary_load
from benchkit.canary_load import Load, Row, World, poisson
from benchkit.canary_table import table
from benchkit.results import ROOT, BenchError, newest

from streamserve.contract.runtime_config import ConfigId

SEED = "unit"
CONFIG = ConfigId(uid="u", generation=2)


@pytest.fixture(scope="module")
def load() -> Load:
    return canary_load.read(canary.LOAD)


def test_an_identical_setting_is_never_found_worse_and_mostly_promoted(load: Load) -> None:
    ends = [run.verdict for run in canary.play(load, Row(name="same", worse_percent=0), 20, SEED)]
    assert "CanaryWorse" not in ends
    assert ends.count(canary.PROMOTED) >= 15


def test_a_setting_that_is_20_percent_worse_is_never_promoted_and_mostly_found_out(load: Load) -> None:
    ends = [run.verdict for run in canary.play(load, Row(name="worse", worse_percent=20), 20, SEED)]
    assert canary.PROMOTED not in ends
    assert ends.count("CanaryWorse") >= 17


def test_every_canary_ends_within_ten_holds_and_one_reconcile(load: Load) -> None:
    for run in canary.play(load, Row(name="border", worse_percent=10), 5, SEED):
        assert load.rules.hold_seconds <= run.seconds <= 10 * load.rules.hold_seconds + load.reconcile_seconds


def test_the_same_seed_is_the_same_run_however_many_there_are(load: Load) -> None:
    row = Row(name="same", worse_percent=0)
    assert canary.play(load, row, 1, SEED) == canary.play(load, row, 2, SEED)[:1]


@pytest.mark.parametrize("how", ["Slow", "Late"])
def test_goodput_of_the_canary_lanes_is_worse_by_what_the_row_says(load: Load, how: str) -> None:
    row = Row.model_validate({"name": "x", "worse_percent": 20, "how": how})
    quiet = load.model_copy(update={"noise": load.noise.model_copy(update={"lane_bias_deviation": 0.0})})
    world = World(quiet, row, ("lane-0",), Random(1))
    tokens, seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for minute in range(600):
        record = world.minute(minute, CONFIG)
        for each in record.rows if record is not None else ():
            if each.workload == "chat":
                tokens[each.lane == "lane-0"] += each.tokens_within_slo
                seconds[each.lane == "lane-0"] += each.engine_seconds
    assert tokens[True] / seconds[True] / (tokens[False] / seconds[False]) == pytest.approx(0.8, abs=0.02)


def test_arrivals_are_as_bursty_as_the_traces_that_the_file_names(load: Load) -> None:
    """Code: 161 times the variance of Poisson at 152 a minute. Steady days, or the sine would add to it."""
    steady = load.model_copy(
        update={
            "requests_per_minute": 152 / 0.3,
            "day": load.day.model_copy(update={"rate_amplitude": 0.0, "mix_amplitude": 0.0}),
        }
    )
    world = World(steady, Row(name="x", worse_percent=0), (), Random(2))
    counts = [world._arrivals()["code"] for _ in range(3_000)]
    assert statistics.fmean(counts) == pytest.approx(152, rel=0.1)
    assert statistics.pvariance(counts) / statistics.fmean(counts) == pytest.approx(161, rel=0.2)


@pytest.mark.parametrize("mean", [0.3, 40.0, 1_200.0])
def test_poisson_has_its_mean_for_its_variance(mean: float) -> None:
    rng = Random(3)
    counts = [poisson(mean, rng) for _ in range(2_000)]
    assert statistics.fmean(counts) == pytest.approx(mean, rel=0.1)
    assert statistics.pvariance(counts) == pytest.approx(mean, rel=0.15)


def test_a_row_is_kept_when_its_first_runs_are_in_bounds() -> None:
    row = Row(name="x", worse_percent=20, want={"CanaryWorse": (2, 3)})
    worse, promoted = canary.Run("CanaryWorse", 120, 0.8), canary.Run(canary.PROMOTED, 120, 1.0)
    assert canary.kept(row, [worse, worse, promoted])
    assert not canary.kept(row, [worse, promoted, promoted])


def test_a_load_that_cannot_be_read_says_which_field(tmp_path: Path) -> None:
    file = tmp_path / "canary.yaml"
    file.write_text("seed: 1\n")
    with pytest.raises(BenchError, match=r"canary\.yaml: runs"):
        canary_load.read(file)


def test_the_page_tells_the_newest_result_whole() -> None:
    document = newest("canary")
    assert document is not None
    assert table(document) in (ROOT / "docs" / "operate" / "canaries.md").read_text()


def test_the_newest_result_is_of_the_load_as_it_stands_and_keeps_what_was_claimed(load: Load) -> None:
    document = newest("canary")
    assert document is not None
    assert document["load"] == load.fingerprint
    assert document["sources"]["as_committed"] is True
    assert [row["row"] for row in document["rows"]] == [row.name for row in load.rows]
