"""Prints charts/streamserve/dashboard.json: the Grafana dashboard, from the table below.

python hack/dashboard.py    print it; hack/generate.py writes it

A row of the table is a panel: title, unit, and its queries with their legends. `PAIR` in a query limits it to the
chosen StreamPair, `[i]` is Grafana's own rate interval. Panels of the operator are not limited: it serves all pairs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, COLUMNS = 8, 7, 24
SELECTOR = 'namespace="$namespace",streamserve_io_pair="$pair"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: legend → expression. `signed`: values below 0 mean something."""

    title: str
    unit: str
    queries: dict[str, str]
    signed: bool = False


def quantiles(histogram: str, *percents: int) -> dict[str, str]:
    rate = f"sum by (le) (rate({histogram}_bucket{{PAIR}}[i]))"
    return {f"p{percent}": f"histogram_quantile({percent / 100:g}, {rate})" for percent in percents}


ROWS: dict[str, tuple[Panel, ...]] = {
    "Traffic": (
        Panel(
            "Requests by outcome",
            "reqps",
            {"{{outcome}}": "sum by (outcome) (rate(streamserve_router_requests_total{PAIR}[i]))"},
        ),
        Panel(
            "Requests by workload",
            "reqps",
            {"{{workload}}": "sum by (workload) (rate(streamserve_router_requests_total{PAIR}[i]))"},
        ),
        Panel(
            "Output tokens per second",
            "short",
            {"tokens": "sum(rate(streamserve_router_output_tokens_total{PAIR}[i]))"},
        ),
        Panel(
            "Requests now",
            "short",
            {
                "open": "sum(streamserve_router_open_requests{PAIR})",
                "waiting": "sum(streamserve_router_queued_requests{PAIR})",
            },
        ),
        Panel("Lanes that take traffic", "short", {"lanes": "max(streamserve_router_ready_lanes{PAIR})"}),
        Panel(
            "Further attempts, and calls to workers that failed",
            "reqps",
            {
                "attempts: {{verdict}}": "sum by (verdict) (rate(streamserve_router_retries_total{PAIR}[i]))",
                "failed: {{reason}}": "sum by (reason) (rate(streamserve_router_worker_failures_total{PAIR}[i]))",
            },
        ),
    ),
    "Latency": (
        Panel("Time to first token", "s", quantiles("streamserve_router_ttft_seconds", 50, 95, 99)),
        Panel("Time per output token", "s", quantiles("streamserve_router_tpot_seconds", 50, 95, 99)),
        Panel("Wait for a worker", "s", quantiles("streamserve_router_queue_seconds", 50, 95, 99)),
        Panel(
            "First token later than predicted",
            "s",
            quantiles("streamserve_router_ttft_error_seconds", 50, 95),
            signed=True,
        ),
        Panel("Prefill, waiting included", "s", quantiles("streamserve_worker_prefill_seconds", 50, 95)),
        Panel(
            "Decode to its first token, KV included", "s", quantiles("streamserve_worker_first_chunk_seconds", 50, 95)
        ),
    ),
    "Speculation": (
        Panel(
            "Share of drafts accepted",
            "percentunit",
            {
                "accepted": "sum(rate(streamserve_worker_accepted_tokens_total{PAIR}[i]))"
                " / sum(rate(streamserve_worker_drafted_tokens_total{PAIR}[i]))"
            },
        ),
        Panel(
            "Share accepted by position",
            "percentunit",
            {
                "{{position}}": "sum by (position) (streamserve_worker_position_accepted{PAIR})"
                " / sum by (position) (streamserve_worker_position_drafted{PAIR})"
            },
        ),
        Panel(
            "Decode steps by depth",
            "ops",
            {"{{depth}}": "sum by (depth) (rate(streamserve_worker_decode_steps_total{PAIR}[i]))"},
        ),
        Panel(
            "Tokens that a request gets from a step",
            "short",
            {"{{pod}}": 'max by (pod) (streamserve_worker_emitted_tokens_per_step{PAIR,streamserve_io_role="decode"})'},
        ),
        Panel(
            "Depth of the last step",
            "short",
            {"{{pod}}": 'max by (pod) (streamserve_worker_depth{PAIR,streamserve_io_role="decode"})'},
        ),
        Panel(
            "Workers that do not adapt",
            "short",
            {"fallen back": "sum(streamserve_worker_speculation_fallback{PAIR})"},
        ),
    ),
    "KV transfer": (
        Panel("KV moved", "Bps", {"bytes": "sum(rate(streamserve_worker_kv_transfer_bytes_total{PAIR}[i]))"}),
        Panel(
            "Pulls by result",
            "ops",
            {"{{result}}": "sum by (result) (rate(streamserve_worker_kv_transfers_total{PAIR}[i]))"},
        ),
        Panel(
            "KV expected and not moved",
            "bytes",
            {
                "missing": "sum(increase(streamserve_worker_kv_transfer_expected_bytes_total{PAIR}[i]))"
                " - sum(increase(streamserve_worker_kv_transfer_bytes_total{PAIR}[i]))"
            },
            signed=True,
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            {
                "{{pod}}": "max by (pod) (streamserve_worker_kv_blocks_used{PAIR})"
                " / max by (pod) (streamserve_worker_kv_blocks{PAIR})"
            },
        ),
    ),
    "Workers": (
        Panel(
            "Requests in the batch", "short", {"{{pod}}": "max by (pod) (streamserve_worker_running_requests{PAIR})"}
        ),
        Panel(
            "Prompt tokens that wait",
            "short",
            {"{{pod}}": "max by (pod) (streamserve_worker_waiting_prompt_tokens{PAIR})"},
        ),
        Panel(
            "Prefill rate (tokens per second)",
            "short",
            {
                "{{pod}}": "max by (pod) (streamserve_worker_prefill_tokens_per_second"
                '{PAIR,streamserve_io_role="prefill"})'
            },
        ),
        Panel(
            "Share of prompt tokens found in the prefix cache",
            "percentunit",
            {
                "cached": "sum(rate(streamserve_worker_cached_prompt_tokens_total{PAIR}[i]))"
                " / sum(rate(streamserve_worker_prompt_tokens_total{PAIR}[i]))"
            },
        ),
        Panel(
            "Up, leaving, refusing",
            "short",
            {
                "engines up": "sum(streamserve_worker_engine_up{PAIR})",
                "draining": "sum(streamserve_worker_draining{PAIR})",
                "configuration refused": "sum(streamserve_worker_config_rejected{PAIR})",
            },
        ),
        Panel(
            "Configuration in force (generation)",
            "short",
            {
                "newest": "max(streamserve_worker_config_generation{PAIR})",
                "oldest": "min(streamserve_worker_config_generation{PAIR})",
            },
        ),
    ),
    "Operator": (
        Panel("Leads", "short", {"{{namespace}}/{{pod}}": "max by (namespace, pod) (streamserve_operator_leads)"}),
        Panel(
            "Reconciles by result",
            "ops",
            {"{{result}}": "sum by (result) (rate(streamserve_operator_reconcile_seconds_count[i]))"},
        ),
        Panel(
            "Time of a reconcile",
            "s",
            {
                f"p{percent}": f"histogram_quantile({percent / 100:g}, sum by (le)"
                " (rate(streamserve_operator_reconcile_seconds_bucket[i])))"
                for percent in (50, 95, 99)
            },
        ),
        Panel(
            "StreamPairs",
            "short",
            {
                "known": "max(streamserve_operator_streampairs)",
                "due": "sum(streamserve_operator_queue_depth * on (namespace, pod) streamserve_operator_leads)",
                "lanes missing": "sum(max by (streampair) (streamserve_operator_missing_lanes)) or vector(0)",
                "namespaces not listed": "max(streamserve_operator_unknown_namespaces)",
            },
        ),
        Panel(
            "Requests to the API server",
            "reqps",
            {"{{verb}} {{outcome}}": "sum by (verb, outcome) (rate(streamserve_operator_api_requests_total[i]))"},
        ),
        Panel(
            "Writes",
            "ops",
            {"{{kind}} {{reason}}": "sum by (kind, reason) (rate(streamserve_operator_writes_total[i]))"},
        ),
        Panel(
            "How long due, how long a watch was silent",
            "s",
            {
                "due for": "max(streamserve_operator_queue_oldest_age_seconds)",
                "silent for": "max(streamserve_operator_watch_silence_seconds)",
            },
        ),
        Panel(
            "Redis answers",
            "short",
            {
                "operator {{pod}}": "max by (pod) (streamserve_operator_redis_connected)",
                "router {{pod}}": "max by (pod) (streamserve_router_redis_connected{PAIR})",
            },
        ),
        Panel(
            "Life left in certificates",
            "s",
            {"{{secret}}": "min by (secret) (streamserve_operator_certificate_expiry_timestamp_seconds) - time()"},
            signed=True,
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    return {
        "uid": "streamserve",
        "title": "StreamServe",
        "tags": ["streamserve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                variable("namespace", "label_values(streamserve_router_ready_lanes, namespace)"),
                variable(
                    "pair", 'label_values(streamserve_router_ready_lanes{namespace="$namespace"}, streamserve_io_pair)'
                ),
            ]
        },
        "panels": list(panels()),
    }


def variable(name: str, query: str) -> dict[str, Any]:
    return {"name": name, "type": "query", "datasource": SOURCE, "query": query, "refresh": 2, "sort": 1}


def panels() -> Iterator[dict[str, Any]]:
    """Rows with their panels below them, from the top down, three beside each other."""
    number, top = 0, 0
    for title, found in ROWS.items():
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        for index, panel in enumerate(found):
            number += 1
            row, column = divmod(index, COLUMNS // WIDTH)
            yield shown(panel, number, {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": top + row * HEIGHT})
        top += -(-len(found) // (COLUMNS // WIDTH)) * HEIGHT


def shown(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression(query), "legendFormat": legend}
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "gridPos": place,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit} | ({} if panel.signed else {"min": 0}), "overrides": []},
        "targets": targets,
    }


def expression(query: str) -> str:
    return query.replace("PAIR", SELECTOR).replace("[i]", "[$__rate_interval]")


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
