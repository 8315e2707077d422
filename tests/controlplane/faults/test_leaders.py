"""More than one operator: standing by, frozen past its Lease, or two that lead at once. The end is the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, HOT, Stage
from tests.support.fault_proxy import Fault
from tests.support.operator_bench import LEASE_SECONDS, PAIR
from tests.support.processes import wait_until

from streamserve.contract.keys import Keyspace
from streamserve.operator.edge.fleet import CHECK_SECONDS
from streamserve.operator.edge.lease import DURATION_SECONDS, RETRY_SECONDS

BETWEEN_RENEWALS_SECONDS = RETRY_SECONDS * LEASE_SECONDS / DURATION_SECONDS / 3
NAMES = ("create", "hot-edit", "rollout", "scale-up", "scale-down", "delete")
# Before the change, and amid it: after how many of its writes.
SAMPLED = ("scale-down", 0)
FROZEN = [(name, k) for name in NAMES for k in (0, 3) if (name, k) != ("delete", 3)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "scale-down" else pytest.mark.everything) for name in NAMES]
)
def test_of_two_operators_one_writes_and_the_other_takes_over_when_it_stops(
    name: str, stage: Stage, undisturbed: Undisturbed
) -> None:
    scenario, bench = BY_NAME[name], stage.bench
    wanted, _ = undisturbed.of(name, stage)
    one = stage.operate()
    bench.until_leads(one)
    two = stage.operate()
    before = stage.prepare(scenario)
    assert bench.writes(two) == 0.0
    assert not bench.leads(two)
    wait_until(lambda: bench.get(two, "/readyz") == (200, "ok\n"), seconds=10, what="it stands by with warm watches")
    held = bench.lease_holder()
    assert one.terminate() == 0
    assert bench.lease_holder() != held, "it gives up the Lease when it stops"
    wait_until(lambda: bench.leads(two), seconds=10, what="the second leads")
    scenario.change(bench)
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before
    assert bench.writes(two) > 0.0 or not scenario.remains


@pytest.mark.parametrize(
    ("name", "k"),
    [
        pytest.param(name, k, id=f"{name}-{k}", marks=() if (name, k) == SAMPLED else pytest.mark.everything)
        for name, k in FROZEN
    ],
)
def test_a_leader_that_was_frozen_past_its_lease_writes_nothing_when_it_goes_on(
    name: str, k: int, stage: Stage, undisturbed: Undisturbed
) -> None:
    scenario, bench = BY_NAME[name], stage.bench
    wanted, _ = undisturbed.of(name, stage)
    one = stage.operate()
    bench.until_leads(one)
    two = stage.operate()
    before, written = stage.prepare(scenario), bench.writes(one)
    if k == 0:
        one.freeze()
    else:
        stage.proxy.after_write = lambda number: one.freeze() if number == k else None
    scenario.change(bench)
    bench.until_leads(two)
    stage.proxy.undisturbed()
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before
    versions, writes = bench.versions(), list(stage.proxy.writes)
    one.thaw()
    time.sleep(LEASE_SECONDS)
    assert bench.versions() == versions
    assert stage.proxy.writes == writes
    assert k > 0 or bench.writes(one) == written
    assert not bench.leads(one)
    assert bench.leads(two)
    assert bench.get(one, "/healthz") == (200, "ok\n"), "it stands by"


def test_a_leader_that_was_frozen_past_its_lease_writes_nothing_before_it_has_renewed_it(
    stage: Stage, tmp_path: Path
) -> None:
    """Nobody has taken the Lease, and nobody tells it that it is over: it has its own clock alone. There is work for it
    everywhere that it writes to."""
    bench = stage.bench
    users, config = {f"{bench.namespace}.router"}, Keyspace(bench.namespace, PAIR).config
    file = tmp_path / "users.acl"
    file.write_text("".join(f"user {name} on #{'0' * 64} ~ss:{bench.namespace}/* +get\n" for name in users))
    operator = stage.operate("--redis-users", str(file))
    stage.prepare(BY_NAME["scale-up"])
    with bench.redis.client() as client:
        wait_until(lambda: users <= set(client.acl_users()), seconds=10, what="Redis' users are made")
        # Amid a renewal, whose time is over when it goes on, it would know at once that it does not lead.
        before = bench.lease()["renewTime"]
        wait_until(lambda: bench.lease()["renewTime"] != before, seconds=5, what="a renewal", every_seconds=0.01)
        time.sleep(BETWEEN_RENEWALS_SECONDS)
        operator.freeze()
        time.sleep(LEASE_SECONDS)
        stage.proxy.faults.append(Fault(0, times=10_000, where=lambda method, path: "/leases" in path))
        bench.edit({"lanes": 3, **HOT})
        (service, *_) = bench.all("Service")
        bench.remove("Service", service["metadata"]["name"])
        client.delete(config)
        client.acl_deluser(*users)
        operator.thaw()
        time.sleep(2 * CHECK_SECONDS)
        assert stage.proxy.writes == []
        assert not client.exists(config)
        assert users.isdisjoint(client.acl_users())
        stage.proxy.undisturbed()
        bench.until_leads(operator)
        wait_until(lambda: users <= set(client.acl_users()), seconds=10, what="it makes the users")
        wait_until(lambda: client.exists(config), seconds=10, what="it writes the configuration")
    stage.settle(remains=True)
    assert ("Service", service["metadata"]["name"]) in bench.names()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.everything
def test_two_installations_that_serve_one_namespace_both_lead_and_agree(
    name: str, stage: Stage, undisturbed: Undisturbed
) -> None:
    """A mistake that the Lease does not catch, for each has one of its own: the worst that two leaders can be."""
    scenario, bench = BY_NAME[name], stage.bench
    wanted, _ = undisturbed.of(name, stage)
    both = [stage.operate("--lease-name", which) for which in ("one", "two")]
    for each in both:
        bench.until_leads(each)
    before = stage.prepare(scenario)
    scenario.change(bench)
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before
    assert all(bench.leads(each) for each in both)
    assert all(bench.writes(each) > 0.0 for each in both), "both had a hand in it"
