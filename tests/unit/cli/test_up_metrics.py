"""What `up` counts about itself."""

from __future__ import annotations

from streamserve.cli.up.metrics import UpMetrics
from streamserve.cli.up.supervisor import State


def test_children_are_counted_by_state_and_restarts_by_kind() -> None:
    metrics = UpMetrics(lambda: [State.UP, State.UP, State.WAITING, State.STOPPED])
    for name in ("lane-0-decode-0", "lane-1-prefill-0", "router"):
        metrics.restarted(name)
    metrics.stands(wanted=2, ready=1, halted=True, generation=7)
    metrics.echoed(0.25)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"streamserve_up_{name}", labels)

    assert [value("children", state=state) for state in ("starting", "up", "waiting")] == [0, 2, 1]
    assert value("children", state="stopped") is None
    assert [value("restarts_total", kind=kind) for kind in ("redis", "router", "worker")] == [0, 1, 2]
    assert (value("wanted_lanes"), value("ready_lanes"), value("rollout_halted")) == (2, 1, 1)
    assert (value("config_generation"), value("config_echo_seconds")) == (7, 0.25)
