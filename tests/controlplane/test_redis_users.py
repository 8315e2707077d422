"""The users of Redis come with a namespace's first StreamPair and go with its last, whatever happens in between."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.support.operator_bench import PAIR, OperatorBench
from tests.support.processes import wait_until

from streamserve.contract.keys import Keyspace

BACK_SECONDS = 5.0


@pytest.fixture
def users(bench: OperatorBench, tmp_path: Path) -> list[str]:
    """The arguments of an operator that looks after them."""
    lines = [f"user {name} on #{'0' * 64} ~ss:{bench.namespace}/* +get" for name in sorted(names(bench))]
    file = tmp_path / "users.acl"
    file.write_text("\n".join(lines))
    return ["--redis-users", str(file)]


def names(bench: OperatorBench) -> set[str]:
    return {f"{bench.namespace}.router", f"{bench.namespace}.worker"}


def present(bench: OperatorBench) -> set[str]:
    with bench.redis.client() as client:
        return set(client.acl_users()) - {"default"}


def until(bench: OperatorBench, wanted: set[str], seconds: float = 30.0) -> None:
    wait_until(lambda: present(bench) == wanted, seconds=seconds, what=f"Redis' users are {sorted(wanted)}")


def test_they_come_with_the_first_and_go_with_the_last(bench: OperatorBench, users: list[str]) -> None:
    bench.until_leads(bench.start("operator", *users))
    bench.create()
    bench.create(name="second")
    bench.until("Ready", "True")
    assert present(bench) == names(bench)
    bench.remove("StreamPair", PAIR)
    wait_until(lambda: all(f"{PAIR}-" not in name for _, name in bench.names()), seconds=30, what="the first is gone")
    time.sleep(2.0)
    assert present(bench) == names(bench), "the second still needs them"
    bench.remove("StreamPair", "second")
    until(bench, set())


def test_they_go_by_resync_when_the_operator_was_down(bench: OperatorBench, users: list[str]) -> None:
    operator = bench.start("one", *users)
    bench.create()
    until(bench, names(bench))
    operator.kill()
    bench.remove("StreamPair", PAIR)
    wait_until(lambda: not bench.names(), seconds=30, what="nothing is left")
    assert present(bench) == names(bench)
    bench.start("two", *users)
    until(bench, set())


def test_a_redis_that_came_back_empty_has_users_and_configurations_again(
    bench: OperatorBench, users: list[str]
) -> None:
    operator = bench.start("operator", *users)
    bench.create()
    bench.until("Ready", "True")
    bench.until_quiet(operator)
    before = bench.versions()
    bench.redis.kill()
    time.sleep(2.0)
    bench.redis.start()
    back = time.monotonic()
    until(bench, names(bench), BACK_SECONDS)
    with bench.redis.client() as client:
        key = Keyspace(bench.namespace, PAIR).config
        wait_until(lambda: client.get(key), seconds=BACK_SECONDS, what="the configuration is back")
    assert time.monotonic() - back < BACK_SECONDS
    assert bench.versions() == before, "no pod, and nothing else, was written for it"
