from pathlib import Path
from typing import Any

import pytest
from benchkit import plan, report, results

CONFIG = plan.load(results.ROOT / "bench" / "path.yaml")
STAMP = {
    "commit": "abc",
    "date": "2026-01-02T03:04:05Z",
    "machine": {
        "cpu": "cpu",
        "cores": 2,
        "memory_gib": 4.0,
        "kernel": "k",
        "python": "3.11",
        "packages": {"nixl": "1"},
    },
}


def row(repeat: int, arm: str, ttft: float, tpot: float) -> dict[str, Any]:
    samples = {str(c): [[key, ttft * (1 + key / 100), tpot] for key in range(4)] for c in CONFIG.requests}
    return {"repeat": repeat, "arm": arm, "commit": "abc", "samples": samples}


@pytest.fixture(name="document")
def _document() -> dict[str, Any]:
    rows = [row(r, "b-3", 20.0, 4.0) for r in range(5)] + [row(r, "c-3", 20.4, 4.4) for r in range(5)]
    return report.result(CONFIG, rows, resamples=100) | STAMP


def test_ratios_are_paired_and_the_target_is_judged_by_the_upper_bound(document: dict[str, Any]) -> None:
    found = {(r["metric"], r["concurrency"]): r for r in document["ratios"] if r["target"]}
    assert found["ttft_ms", 1]["ratio"] == pytest.approx(1.02)
    assert found["ttft_ms", 1]["holds"]
    assert found["tpot_ms", 16]["ratio"] == pytest.approx(1.1)
    assert not found["tpot_ms", 16]["holds"]
    assert found["tpot_ms", 16]["repeats"] == 5


def test_only_equal_depths_of_ours_over_vllms_pair_carry_the_target() -> None:
    rows = [row(0, arm.name, 10.0, 1.0) for arm in CONFIG.arms]
    carried = {(r["ours"], r["theirs"]) for r in report.result(CONFIG, rows, resamples=20)["ratios"] if r["target"]}
    assert carried == {("c-none", "b-none"), ("c-1", "b-1"), ("c-3", "b-3"), ("c-6", "b-6")}


def test_an_arm_without_a_run_is_left_out(document: dict[str, Any]) -> None:
    assert set(document["arms"]) == {"b-3", "c-3"}
    assert {(r["ours"], r["theirs"]) for r in document["ratios"]} == {("c-3", "b-3")}


def test_an_arm_that_was_given_up_is_named_with_its_reason_and_has_no_figures() -> None:
    lost = {"repeat": 1, "arm": "b-3-as-shipped", "commit": "abc", "failed": "4 at once: nothing\ncame", "samples": {}}
    document = report.result(CONFIG, [row(0, "c-3", 20.0, 4.0), lost], resamples=20) | STAMP
    assert set(document["arms"]) == {"c-3"}
    assert "b-3-as-shipped, repeat 2, did not end (4 at once: nothing came)." in report.page({"path": document})
    assert report.one_line(lost).startswith("given up; 4 at once")


def test_the_table_shows_median_and_quartiles(document: dict[str, Any]) -> None:
    text = report.table(document)
    assert "| b-3 | 20.3 (20.1 … 20.4) |" in text
    assert "| c-3 / b-3 | TPOT | 16 | 1.100 [1.100, 1.100] | 20 | does not hold |" in text


def test_the_page_says_what_was_not_measured_and_makes_no_speed_claim(document: dict[str, Any]) -> None:
    text = report.page({"path": document})
    assert "mechanism, 4 M-parameter pair, not a speed claim" in text
    assert text.count(report.NOT_MEASURED) == 4
    assert "on commit abc" in text


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "router-cpu": (
        {
            "streams": 200,
            "tokens_per_stream": 256,
            "repeats": 5,
            "tokens_per_message": {"router": 1.0, "bare": 1.0},
            "target_ratio": 1.4,
            "target_holds": False,
            "figures": {
                "steady_us": {"router": 75.0, "bare": 50.0, "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6},
            },
        },
        "it does not hold",
    ),
    "first-token": (
        {"requests": 9, "budget": [{"name": "bare engine", "ms": 3.14159, "how": "measured"}]},
        "| bare engine | 3.14 | measured |",
    ),
    "simulator": (
        {
            "calibrated_on": "6 at once",
            "target_percent": 15.0,
            "loads": [
                {
                    "name": "2 at once",
                    "ttft_ms": {"engine": 10.0, "simulator": 12.0, "error_percent": 20.0, "holds": False},
                    "tpot_ms": {"engine": 2.0, "simulator": 2.1, "error_percent": 5.0, "holds": True},
                }
            ],
        },
        "| 2 at once | TTFT | 10.00 | 12.00 | +20.0 % | does not hold |",
    ),
    "pick-cost": (
        {"sizes": [{"pairs": 16, "median_us": 90.4, "p99_us": 120.0}]},
        "| 16 | 90 | 120 |",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_each_result_has_its_part_of_the_page(name: str, tmp_path: Path) -> None:
    document, says = PARTS[name]
    results.write(name, STAMP | document, tmp_path)
    page = tmp_path / "benchmarks.md"
    report.write_page(tmp_path, page)
    assert says in page.read_text()
    assert page.read_text().count(report.NOT_MEASURED) == 4
