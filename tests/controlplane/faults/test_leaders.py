"""More than one operator: standing by, frozen past its Lease, or two that lead at once. The end is the same."""

from __future__ import annotations

import time

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.support.operator_bench import LEASE_SECONDS
from tests.support.processes import wait_until

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
