"""A worker whose hand-over port somebody else has by now: vLLM alone would load for ever."""

from __future__ import annotations

import socket
from pathlib import Path

from processes import wait_until
from real_lane import START_SECONDS, RealLane


def test_a_worker_that_cannot_listen_for_hand_overs_ends_and_names_the_port(tmp_path: Path) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        taken = f"127.0.0.1:{somebody.getsockname()[1]}"
        worker = RealLane(tmp_path).worker("prefill", nixl=taken).start()
        try:
            wait_until(
                lambda: not worker.alive,
                seconds=START_SECONDS,
                what="the worker ends",
                explain=lambda: worker.log[-4000:],
                every_seconds=0.2,
            )
        finally:
            worker.kill()
    assert worker.exit_status == 2
    assert (
        f"cannot listen for KV hand-overs: Address already in use (addr='tcp://{taken}'); this engine ends"
        in worker.log
    )
    assert "vLLM did not start" in worker.log
