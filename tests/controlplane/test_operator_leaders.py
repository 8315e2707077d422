"""Operators that die, freeze and stand by, on a real API server: one writes, and the end is the same."""

from __future__ import annotations

import time

from tests.support.operator_bench import LEASE_SECONDS, PAIR, OperatorBench
from tests.support.processes import wait_until

from streamserve.contract.keys import LANES_TTL_MS, Keyspace


def test_of_two_operators_one_writes_and_the_other_takes_over_when_it_stops(bench: OperatorBench) -> None:
    one = bench.start("one")
    bench.until_leads(one)
    two = bench.start("two")
    bench.create()
    bench.until("Ready", "True")
    bench.until_quiet(one)
    assert bench.writes(two) == 0.0
    assert not bench.leads(two)
    assert bench.get(two, "/readyz") == (200, "ok\n"), "it stands by with warm watches"
    held = bench.lease_holder()
    assert one.terminate() == 0
    assert bench.lease_holder() != held, "it gives up the Lease when it stops"
    wait_until(lambda: bench.leads(two), seconds=10, what="the second leads")
    bench.edit({"lanes": 1})
    bench.until("Ready", "True")
    assert bench.writes(two) > 0.0


def test_a_leader_that_was_frozen_past_its_lease_writes_nothing_when_it_goes_on(bench: OperatorBench) -> None:
    one = bench.start("one")
    bench.until_leads(one)
    two = bench.start("two")
    bench.create()
    bench.until("Ready", "True")
    bench.until_quiet(one)
    written = bench.writes(one)
    one.freeze()
    bench.edit({"lanes": 1, "speculation": {"depth": {"max": 1}}})
    bench.until_leads(two)
    bench.until("Ready", "True")
    bench.until_quiet(two)
    before = bench.versions()
    one.thaw()
    time.sleep(LEASE_SECONDS)
    assert bench.versions() == before
    assert bench.writes(one) == written
    assert not bench.leads(one)
    assert bench.leads(two)
    assert bench.get(one, "/healthz") == (200, "ok\n"), "it stands by"


def test_redis_away_during_an_edit_stops_nothing_and_redis_restarted_empty_is_filled(bench: OperatorBench) -> None:
    operator = bench.start("operator")
    bench.create()
    bench.until("Ready", "True")
    bench.until_quiet(operator)
    bench.redis.kill()
    bench.edit({"speculation": {"depth": {"max": 1}}})
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
    key = Keyspace(bench.namespace, PAIR).config
    began = time.monotonic()

    def is_back() -> bool:
        with bench.redis.client() as client:
            return b'"generation":2' in (client.get(key) or b"")

    wait_until(is_back, seconds=10, what="the configuration is back")
    assert time.monotonic() - began < 5.0
    bench.until("ConfigApplied", "True")
    with bench.redis.client() as client:
        client.flushall()
    began = time.monotonic()
    wait_until(is_back, seconds=10, what="the configuration is back in the Redis that forgot it")
    assert time.monotonic() - began < 5.0
