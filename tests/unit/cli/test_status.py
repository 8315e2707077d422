"""Lines that people read: the live line, the table of `top`, the table of `explain`."""

from __future__ import annotations

import io

from streamserve.cli import fleet_view, top
from streamserve.cli.explain import as_object
from streamserve.cli.up.status import Reporter, Standing, live_line
from streamserve.contract import signals
from streamserve.contract.identity import fingerprint
from streamserve.v1 import admin_pb2, worker_pb2


def decode_signals(**changes: object) -> bytes:
    values: dict[str, object] = {
        "role": signals.Role.DECODE,
        "boot_id": 1,
        "epoch": 1,
        "uid_fingerprint": fingerprint("uid"),
        "config_generation": 3,
        "depth": 4,
        "running_requests": 2,
        "kv_blocks_total": 100,
        "kv_blocks_used": 25,
        "step_base_seconds": 0.008,
        "step_per_request_seconds": 0.001,
        "mean_emitted_tokens_per_step": 2.5,
        "drafted_tokens": 80,
        "accepted_tokens": 40,
    }
    return signals.encode(signals.WorkerSignals(**(values | changes)))  # type: ignore[arg-type]


def view(worker: str, role: str, packed: bytes) -> admin_pb2.WorkerView:
    return admin_pb2.WorkerView(
        worker=worker_pb2.WorkerEndpoint(id=worker, role=role, lane="lane-0"), signals=packed, health="ok"
    )


def fleet(*views: admin_pb2.WorkerView) -> fleet_view.Fleet:
    lane = admin_pb2.Lane(name="lane-0", state=admin_pb2.LANE_STATE_READY, revision="r", workers=views)
    return fleet_view.read(admin_pb2.GetFleetResponse(lanes=[lane], running_requests=2, redis_connected=True))


def test_tokens_per_second_is_batch_times_emitted_over_step_time() -> None:
    assert round(fleet(view("d", "decode", decode_signals())).tokens_per_second) == 500


def test_the_live_line() -> None:
    seen = fleet(view("d", "decode", decode_signals()))
    line = live_line(Standing(lanes=2, ready=1, generation=3, loading=(("lane-1-decode-0", 12.2),), fleet=seen))
    assert line == (
        "1 of 2 lanes ready · lane-1-decode-0: loading, 12 s · 2 running, 0 queued · ≈500 tokens/s · depth 4 · config 3"
    )


def test_a_pipe_gets_lines_with_the_time_and_progress_at_most_every_few_seconds() -> None:
    out = io.StringIO()
    reporter = Reporter(out)
    reporter.say("hello")
    for _ in range(3):
        reporter.show(Standing(lanes=1, ready=0, generation=1, loading=(("lane-0-decode-0", 3.0),)))
    lines = out.getvalue().splitlines()
    assert [line[9:] for line in lines] == ["hello", "lane-0-decode-0: loading, 3 s"]


def test_a_row_of_top() -> None:
    row = fleet(view("d", "decode", decode_signals())).lanes[0].workers[0]
    assert top.figures(row) == ("2", "0", "25 %", "4", "50 %", "2.50", "500", "0 ms", "3")


def test_a_worker_without_signals_has_dashes() -> None:
    rows = fleet(view("d", "decode", b""), view("p", "prefill", b"garbage")).lanes[0].workers
    assert [row.role for row in rows] == ["prefill", "decode"]
    assert all(top.figures(row)[0] == "–" for row in rows)


def test_explain_as_json_keeps_every_term() -> None:
    answer = admin_pb2.ExplainRouteResponse(
        chosen="lane-0",
        policy="FlowGuard",
        candidates=[
            admin_pb2.Candidate(
                lane="lane-0", cost_seconds=0.5, terms=[admin_pb2.Term(name="transfer", value=0.1, unit="s")]
            )
        ],
        refused=[admin_pb2.Refusal(lane="lane-1", reason="draining")],
    )
    found = as_object(answer)
    assert found["candidates"][0]["terms"] == [{"name": "transfer", "value": 0.1, "unit": "s"}]
    assert found["refused"] == [{"lane": "lane-1", "reason": "draining"}]


class ClosedTerminal(io.StringIO):
    def __init__(self, *, tty: bool) -> None:
        super().__init__()
        self.tty = tty
        self.gone = False

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return len(text)


def test_a_closed_terminal_or_pipe_disturbs_nothing() -> None:
    for tty in (True, False):
        reporter = Reporter(out := ClosedTerminal(tty=tty))
        out.gone = True
        reporter.say("stopping")
        reporter.show(Standing(lanes=1, ready=0, generation=1, loading=(("lane-0-decode-0", 9.0),)))
        reporter.close()
