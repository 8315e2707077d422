"""The result of `bench/canary.py` as the table of docs/operate/canaries.md; a test holds the page to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = (
    "| canary | first 20: promoted, worse, inconclusive | of {runs}: promoted | worse | inconclusive | "
    "wrong | median s to a verdict | p90 |\n|---|---|---|---|---|---|---|---|"
)
VERDICTS = ("Promoted", "CanaryWorse", "CanaryInconclusive")


def table(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    lines = [HEAD.format(runs=f"{rows[0]['runs']:,}")]
    for row in rows:
        first = ", ".join(str(row["first_runs"].get(verdict, 0)) for verdict in VERDICTS)
        shares = " | ".join(f"{row['percent'][verdict]:.1f} %" for verdict in VERDICTS)
        times = row["seconds_to_verdict"]
        lines.append(
            f"| {row['row']} | {first} | {shares} | {row['wrong_percent']:.1f} % | {times['median']} | {times['p90']} |"
        )
    return "\n".join(lines)
