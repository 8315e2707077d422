"""The figures of docs/operate/scale.md come from a result, and only they are written anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchkit import scale_page

RESULT: dict[str, Any] = {
    "commit": "abc",
    "date": "2026-01-02T03:04:05Z",
    "machine": {"cpu": "cpu", "cores": 2, "memory_gib": 4.0, "python": "3.11", "packages": {"kopf": "1"}},
    "pairs": 1_000,
    "pods": 4_000,
    "create": {"seconds": 300.0, "requests_per_pair": 50.1},
    "start": {"seconds": 19.0, "cpu_seconds": 15.0, "rss_mib": 165.4, "requests_per_pair": 0.03},
    "steady": {
        "seconds": 600.0,
        "writes_before": 0.0,
        "writes": 0.0,
        "requests": {"GET": 600.0, "PUT": 600.0},
        "cpu_cores": 0.02,
    },
    "hot": {"edits": 100, "others": 100, "edits_of_others": 400, "median_seconds": 0.5, "p99_seconds": 1.1},
}


def test_each_figure_stands_beside_its_target() -> None:
    text = scale_page.figures([RESULT])
    assert "### 1,000 StreamPairs, 4,000 pods" in text
    assert "| started: until each was reconciled, s | 19 | at most 20: holds |" in text
    assert "| started: memory (RSS), MiB | 165.40 | at most 200: holds |" in text
    assert "| at rest: requests each second, the Lease's | 2.00 |  |" in text


def test_what_was_loaded_has_no_figure_of_its_creation_and_a_profile_is_a_table() -> None:
    profile = {"samples": 1_200, "deciding": 0.75, "the rest": 0.25}
    text = scale_page.figures([{**RESULT, "create": None, "profile": profile, "note": "Of a first run."}])
    assert "created" not in text
    assert "1,200 samples" in text
    assert "| deciding | 75.0% |" in text
    assert text.endswith("\n\nOf a first run.")


@pytest.mark.parametrize(("part", "figure", "value"), [("start", "seconds", 20.1), ("steady", "writes", 1.0)])
def test_a_figure_that_misses_its_target_says_so(part: str, figure: str, value: float) -> None:
    text = scale_page.figures([{**RESULT, part: {**RESULT[part], figure: value}}])
    assert text.count("**does not hold**") == 1


def test_without_a_result_the_page_says_so() -> None:
    assert scale_page.figures([]) == "Not measured yet."


def test_what_stands_around_the_figures_stays(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(f"before\n\n{scale_page.BEGIN}\nof last year\n{scale_page.END}\n\nafter\n")
    (tmp_path / "operator-2026-01-02.json").write_text(json.dumps(RESULT))
    scale_page.write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "1,000 StreamPairs" in text
    assert "of last year" not in text
