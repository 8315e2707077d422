"""What `top` shows is what was said, letter by letter."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streamserve.cli import top
from streamserve.cli.fleet_view import Fleet, LaneRow, WorkerRow
from streamserve.cli.main import main

SAID = [
    "canary: RuntimeError: [enforce fail at alloc_cpu.cpp:115] err == 0",
    "canary: RuntimeError: cannot open [/models/draft]",
    "canary: [red]no colour[/red] :warning:",
]


@pytest.mark.parametrize("said", SAID)
def test_a_reason_with_brackets_is_shown_as_it_is(said: str) -> None:
    worker = WorkerRow(id="lane-0-decode-0", role="decode", health="[stalled]", signal_age_ms=3, signals=None)
    lane = LaneRow(name="lane-0", revision="r", state="Fenced", reason=said, workers=(worker,))
    out = io.StringIO()
    Console(file=out, width=300).print(top.table(Fleet(lanes=(lane,))))
    assert f"Fenced: {said}" in out.getvalue()
    assert "decode-0 ([stalled])" in out.getvalue()


@pytest.mark.parametrize("seconds", ["0", "nan"])
def test_an_interval_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", seconds]) == 2
    assert "--interval must be at least 0.1 s" in capsys.readouterr().err


def test_a_terminal_without_a_sign_of_ours_shows_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()

    def run(_: object) -> int:
        print("1 running · →", flush=True)
        return 0

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(top, "run", run)
    assert main(["top"]) == 0
    assert written.getvalue() == b"1 running ? ?\n"
