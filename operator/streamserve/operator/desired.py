"""Everything that one StreamPair wants, computed from its spec and the site: objects, the configuration, the lanes.

`objects` are in the order in which they are needed: identities and configuration before what mounts them. Pods are
not among them: which of them may exist at this moment is the rollout's decision, `pod` renders any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamserve.contract import launch
from streamserve.contract.hot import runtime_config
from streamserve.contract.lanes import Slot, Wanted
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming, scale
from streamserve.operator.builders import accounts, config, disruption, router, scalers, services, worker_pods
from streamserve.operator.canary import law
from streamserve.operator.naming import Manifest
from streamserve.operator.observe import Observed
from streamserve.operator.scale import Replicas
from streamserve.operator.site import Site

READY_MARGIN_SECONDS = 120
"""Scheduling, pulling the image and the canary transfer, on top of the engine's own start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """`seeds`: what an object gets at its creation and never again. `reluctant`: see `_lanes` below. `canary`: the
    configuration that is wanted, and why it is that one and not the spec's."""

    pair: StreamPair
    site: Site
    canary: law.Outcome
    objects: tuple[Manifest, ...]
    replicas: Replicas
    wanted: Wanted
    reluctant: bool
    seeds: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)

    @property
    def config(self) -> RuntimeConfig:
        return self.canary.memory.config

    def pod(self, lane: int, slot: Slot) -> Manifest:
        return worker_pods.pod(self.pair, self.site, lane, slot, self.wanted.revision)


def desired(pair: StreamPair, site: Site, observed: Observed, now: float) -> Desired:
    """`pair` was accepted, so nothing here can fail. `now` in seconds since the epoch."""
    counts = scale.replicas(pair, _scaler_values(pair, observed), observed.running)
    outside = scale.external(pair)
    wanted, reluctant = _lanes(pair, site, counts)
    outcome = _speculation(pair, wanted, observed, now)
    objects = [
        accounts.account(pair, "worker"),
        accounts.account(pair, naming.ROUTER),
        config.config_map(pair, outcome.memory),
        *(services.workers(pair, role) for role in naming.ROLES),
        services.router(pair, site),
        router.deployment(pair, site),
        disruption.workers(pair, counts.pods_per_lane),
        disruption.router(pair),
        *(scalers.scaler(pair, role) for role in outside),
    ]
    return Desired(
        pair=pair,
        site=site,
        canary=outcome,
        objects=tuple(objects),
        replicas=counts,
        wanted=wanted,
        reluctant=reluctant,
        seeds={
            (scalers.KIND, naming.child_name(pair.metadata.name, role)): scalers.seed(counts.of(role))
            for role in outside
        },
    )


def _speculation(pair: StreamPair, wanted: Wanted, observed: Observed, now: float) -> law.Outcome:
    asked = law.Wanted(
        config=runtime_config(pair, pair.metadata.uid, pair.metadata.generation),
        rules=pair.spec.speculation.rollout,
        lanes=tuple(launch.lane_name(lane) for lane in range(wanted.lanes)),
        revision=wanted.revision,
        max_depth=pair.spec.speculation.max_depth,
    )
    if pair.spec.paused:
        return law.paused(asked, observed.memory)
    echoed = max(((echo.generation, echo.step) for echo in observed.echoes.values()), default=(-1, -1))
    return law.decide(asked, observed.memory, observed.goodput, now, echoed=echoed)


def _lanes(pair: StreamPair, site: Site, counts: Replicas) -> tuple[Wanted, bool]:
    """A default of maxUnavailable that covers every lane is no permission to take them all: one stays (reluctant)."""
    update, lanes = pair.spec.update, pair.spec.lanes
    reluctant = update.max_unavailable is None and 0 < lanes <= update.unavailable_lanes
    return (
        Wanted(
            revision=worker_pods.revision_of(pair, site),
            lanes=lanes,
            prefill_replicas=counts.prefill,
            decode_replicas=counts.decode,
            max_unavailable=lanes - 1 if reluctant else update.unavailable_lanes,
            max_surge=update.max_surge,
            ready_seconds=float(worker_pods.start_seconds(pair) + READY_MARGIN_SECONDS),
        ),
        reluctant,
    )


def _scaler_values(pair: StreamPair, observed: Observed) -> dict[str, int]:
    found = {}
    for role in naming.ROLES:
        child = observed.children.get((scalers.KIND, naming.child_name(pair.metadata.name, role)))
        count = child.live.get("spec", {}).get("replicas") if child is not None else None
        if isinstance(count, int):
            found[role] = count
    return found
