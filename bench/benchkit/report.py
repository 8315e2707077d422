"""From result files to docs/benchmarks.md. Whatever was not measured says so; nothing is filled in.

a cell       median (low quartile … high quartile) over all requests of all repeats
a ratio      median of paired ratios [95 % interval], pairs = same repeat and same request
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchkit import results, stats
from benchkit.plan import Plan

PAGE: Final = results.ROOT / "docs" / "benchmarks.md"
METRICS: Final = {"ttft_ms": 1, "tpot_ms": 2}
ROUTER_CPU: Final = "router-cpu"
NOT_MEASURED: Final = "Not measured yet."


def one_line(row: Mapping[str, Any]) -> str:
    """Medians of one arm-run, for the progress."""
    if row.get("failed"):
        return f"given up; {row['failed']}"
    parts = []
    for concurrency, samples in row["samples"].items():
        ttft, tpot = (stats.summarize([s[column] for s in samples]).median for column in METRICS.values())
        parts.append(f"{concurrency} at once: TTFT {ttft:.1f} ms, TPOT {tpot:.2f} ms")
    return "; ".join(parts)


def result(plan: Plan, rows: Sequence[Mapping[str, Any]], resamples: int = stats.RESAMPLES) -> dict[str, Any]:
    """The result document: summaries of every arm, ratios of every pair, and whether the target holds."""
    arms = {
        arm.name: {
            str(concurrency): {
                metric: _summary([s[column] for row in _of(rows, arm.name) for s in row["samples"][str(concurrency)]])
                for metric, column in METRICS.items()
            }
            for concurrency in plan.requests
        }
        for arm in plan.arms
        if _of(rows, arm.name)
    }
    ratios = []
    for ours, theirs in plan.pairs:
        for concurrency in plan.requests:
            for metric, column in METRICS.items():
                pairs = stats.paired(
                    _keyed(rows, ours, str(concurrency), column), _keyed(rows, theirs, str(concurrency), column)
                )
                if not pairs:
                    continue
                ratio = stats.ratio_interval(pairs, seed=plan.seed, resamples=resamples)
                ratios.append(
                    {
                        "ours": ours,
                        "theirs": theirs,
                        "concurrency": concurrency,
                        "metric": metric,
                        "ratio": round(ratio.point, 4),
                        "low": round(ratio.low, 4),
                        "high": round(ratio.high, 4),
                        "pairs": ratio.pairs,
                        "repeats": ratio.repeats,
                        "target": _has_target(plan, ours, theirs),
                        "holds": ratio.high <= plan.target_upper_bound,
                    }
                )
    return {
        **results.stamp(),
        "measured_on_commits": sorted({row["commit"] for row in rows}),
        "heading": results.HEADING,
        "configuration": plan.model_dump(mode="json"),
        "fingerprint": plan.fingerprint,
        "repeats": {arm: len(_of(rows, arm)) for arm in arms},
        "failed": [{key: row[key] for key in ("arm", "repeat", "failed")} for row in rows if row.get("failed")],
        "arms": arms,
        "ratios": ratios,
        "runs": [{key: value for key, value in row.items() if key != "fingerprint"} for row in rows],
    }


def _has_target(plan: Plan, ours: str, theirs: str) -> bool:
    """The target is for ours against vLLM's pair at equal depth, over the same kind of front and the same NIXL."""
    arms = {arm.name: arm for arm in plan.arms}
    a, b = arms[ours], arms[theirs]
    same = a.depth == b.depth and a.front == "Grpc" and not b.as_shipped
    return same and a.system == "StreamServe" and b.system == "VllmPair"


def _of(rows: Iterable[Mapping[str, Any]], arm: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["arm"] == arm and not row.get("failed")]


def _keyed(rows: Iterable[Mapping[str, Any]], arm: str, concurrency: str, column: int) -> dict[int, dict[Any, float]]:
    return {row["repeat"]: {s[0]: s[column] for s in row["samples"][concurrency]} for row in _of(rows, arm)}


def _summary(values: Sequence[float]) -> dict[str, float | int]:
    summary = stats.summarize(values)
    return {
        "median": round(summary.median, 4),
        "low": round(summary.low, 4),
        "high": round(summary.high, 4),
        "count": summary.count,
    }


# ---- Markdown ----


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(document: Mapping[str, Any]) -> str:
    """Two tables of one result of run.py: the arms, then the ratios."""
    concurrencies = [str(key) for key in document["configuration"]["requests"]]
    head = ["arm", *(f"{metric[:4].upper()} ms, {c} at once" for metric in METRICS for c in concurrencies)]
    body = []
    for arm, figures in document["arms"].items():
        cells = []
        for metric in METRICS:
            digits = 1 if metric == "ttft_ms" else 2
            for c in concurrencies:
                s = figures[c][metric]
                cells.append(f"{s['median']:.{digits}f} ({s['low']:.{digits}f} … {s['high']:.{digits}f})")
        body.append([arm, *cells])
    out = markdown_table(head, body)
    if document["ratios"]:
        ratio_rows = []
        for ratio in document["ratios"]:
            verdict = ("holds" if ratio["holds"] else "does not hold") if ratio["target"] else "–"
            ratio_rows.append(
                [
                    f"{ratio['ours']} / {ratio['theirs']}",
                    ratio["metric"][:4].upper(),
                    str(ratio["concurrency"]),
                    f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                    str(ratio["pairs"]),
                    verdict,
                ]
            )
        out += "\n\n" + markdown_table(["pair", "metric", "at once", "ratio [95 %]", "pairs", "target"], ratio_rows)
    return out


def page(documents: Mapping[str, Mapping[str, Any] | None]) -> str:
    """docs/benchmarks.md from the newest result of each benchmark, None where there is none."""
    parts = [
        "# Benchmarks",
        f"**{results.HEADING}.** These figures compare mechanisms on one machine within one run; they say nothing "
        "about the speed of a model that people use. Written by `python bench/page.py` from `bench/results/`; "
        "[bench/README.md](../bench/README.md) says how each is measured and how to measure again.",
        "## The whole path, against vLLM's own prefill/decode",
        "One lane in every arm: (a) `AsyncLLM` in process, (b) vLLM's API server as prefill and as decode behind a "
        "minimal asyncio proxy, (c) StreamServe. The suffix is the speculation depth; `none` has no drafter. Equal "
        "output lengths, greedy, prefix caching off, closed loop, arms shuffled, warm-up dropped; arms whose ratio has "
        "a bound take turns within seconds of each other. The target, for (c) over (b) at equal depth: the upper "
        "end of the 95 % interval is at most 1.05.",
        _path(documents.get("path")),
        "## The router's CPU per streamed message",
        _router_cpu(documents.get(ROUTER_CPU)),
        "## The first token, where its time goes",
        _first_token(documents.get("first-token")),
        "## The simulator against the engine that it was recorded from",
        _simulator(documents.get("simulator")),
        "## What a pick costs",
        _pick_cost(documents.get("pick-cost")),
    ]
    return "\n\n".join(parts) + "\n"


def write_page(folder: Path = results.RESULTS, to: Path = PAGE) -> None:
    names = ("path", ROUTER_CPU, "first-token", "simulator", "pick-cost")
    to.write_text(page({name: results.newest(name, folder) for name in names}))
    results.say(f"written: {to.relative_to(results.ROOT) if to.is_relative_to(results.ROOT) else to.name}")


def origin(document: Mapping[str, Any]) -> str:
    """When, on which commit and machine."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    commits = document.get("measured_on_commits") or [document["commit"]]
    return (
        f"Measured {document['date'][:10]} on commit {', '.join(commits)}; {machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB; Python {machine['python']}, {packages}."
    )


def _path(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    repeats = sorted(set(document["repeats"].values()))
    said = " to ".join(str(count) for count in {repeats[0]: 0, repeats[-1]: 0})
    lost = "".join(
        f" {row['arm']}, repeat {row['repeat'] + 1}, did not end ({' '.join(row['failed'].split())})."
        for row in document.get("failed", ())
    )
    return f"{origin(document)} {said} repeats of every arm.{lost}\n\n{table(document)}"


def _router_cpu(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    names = {"steady_us": "steady: every stream runs", "whole_us": "whole: admission, pick and prefill included"}
    rows = []
    for name, figure in document["figures"].items():
        interval = f"{figure['ratio']:.2f} [{figure['ratio_low']:.2f}, {figure['ratio_high']:.2f}]"
        rows.append([names[name], f"{figure['router']:.1f}", f"{figure['bare']:.1f}", interval])
    verdict = "holds" if document["target_holds"] else "does not hold"
    per_message = document["tokens_per_message"]
    return (
        f"{origin(document)} {document['streams']} streams of {document['tokens_per_stream']} tokens from one "
        f"simulator lane, {document['repeats']} repeats, {per_message['router']:.2f} tokens per message through the "
        f"router and {per_message['bare']:.2f} through the bare grpc.aio proxy. Target, steady: at most "
        f"{document['target_ratio']}; it {verdict}.\n\n"
        + markdown_table(["", "router, µs CPU", "bare proxy, µs CPU", "ratio [95 %]"], rows)
    )


def _first_token(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    rows = [[part["name"], f"{part['ms']:.2f}", part["how"]] for part in document["budget"]]
    return (
        f"{origin(document)} One request at a time, no drafter, {document['requests']} requests of each kind, "
        "interleaved; medians, and differences of medians where a part cannot be timed alone.\n\n"
        + markdown_table(["part", "ms", "how it is known"], rows)
    )


def _simulator(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    rows = [
        [
            load["name"],
            metric[:4].upper(),
            f"{load[metric]['engine']:.2f}",
            f"{load[metric]['simulator']:.2f}",
            f"{load[metric]['error_percent']:+.1f} %",
            "holds" if load[metric]["holds"] else "does not hold",
        ]
        for load in document["loads"]
        for metric in METRICS
    ]
    return (
        f"{origin(document)} Calibrated on: {document['calibrated_on']}. Target: medians within "
        f"{document['target_percent']} %.\n\n"
        + markdown_table(["load", "metric", "engine, ms", "simulator, ms", "error", "target"], rows)
    )


def _pick_cost(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return NOT_MEASURED
    rows = [[str(row["pairs"]), f"{row['median_us']:.0f}", f"{row['p99_us']:.0f}"] for row in document["sizes"]]
    return f"{origin(document)}\n\n" + markdown_table(["(prefill, decode) pairs", "median µs", "p99 µs"], rows)
