"""Redis away while something changes, and Redis that comes back empty amid it: the same end, and no pod is touched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.controlplane.faults.conftest import NAMESPACE, Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.support.operator_bench import PAIR
from tests.support.processes import wait_until

from streamserve.contract.keys import LANES_TTL_MS, Keyspace

BACK_SECONDS = 5.0
AWAY_SECONDS = 2.0
USERS = {f"{NAMESPACE}.router", f"{NAMESPACE}.worker"}


def test_redis_away_during_an_edit_stops_nothing_and_redis_restarted_empty_is_filled(
    stage: Stage, undisturbed: Undisturbed
) -> None:
    scenario, bench = BY_NAME["hot-edit"], stage.bench
    wanted, _ = undisturbed.of("hot-edit", stage)
    operator = stage.operate()
    before = stage.prepare(scenario)
    bench.redis.kill()
    scenario.change(bench)
    wait_until(
        lambda: '"generation":2' in (bench.one("ConfigMap", "llama-config") or {})["data"]["config.json"],
        seconds=10,
        what="the ConfigMap has the edit",
    )
    away = "streamserve_operator_redis_connected"
    wait_until(lambda: bench.metrics(operator)[away] == 0.0, seconds=10, what="the operator misses Redis")
    time.sleep(2 * LANES_TTL_MS / 1_000)
    assert bench.condition("Ready")["status"] == "True", "gates stay while routers cannot be heard"
    bench.redis.start()
    until_back(stage, '"generation":2')
    assert stage.settle(remains=True) == wanted
    with bench.redis.client() as client:
        client.flushall()
    until_back(stage, '"generation":2')
    assert stage.settle(remains=True) == wanted
    assert stage.uids(scenario.untouched) == before


@pytest.mark.parametrize("name", ["create", "hot-edit", "rollout", "scale-up", "scale-down"])
@pytest.mark.everything
def test_a_redis_that_comes_back_empty_amid_a_change_has_users_and_the_configuration_again(
    name: str, stage: Stage, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    scenario, bench = BY_NAME[name], stage.bench
    wanted, _ = undisturbed.of(name, stage)
    file = tmp_path / "users.acl"
    file.write_text("\n".join(f"user {user} on #{'0' * 64} ~ss:{NAMESPACE}/* +get" for user in sorted(USERS)))
    stage.operate("--redis-users", str(file))
    before = stage.prepare(scenario)
    scenario.change(bench)
    wait_until(lambda: stage.proxy.writes, seconds=30, what="the change has begun", every_seconds=0.01)
    bench.redis.kill()
    time.sleep(AWAY_SECONDS)
    bench.redis.start()
    until_back(stage, PAIR, users=USERS)
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before


def until_back(stage: Stage, holds: str, users: frozenset[str] | set[str] = frozenset()) -> None:
    """Until the configuration is in Redis, and its users are. Not later than BACK_SECONDS from now."""
    key = Keyspace(NAMESPACE, PAIR).config
    began = time.monotonic()

    def is_back() -> bool:
        with stage.bench.redis.client() as client:
            there = set(client.acl_users())
            return holds.encode() in (client.get(key) or b"") and there >= users

    wait_until(is_back, seconds=2 * BACK_SECONDS, what="users and configuration are back")
    assert time.monotonic() - began < BACK_SECONDS
