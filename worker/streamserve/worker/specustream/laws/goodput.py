"""`Goodput`: the depth that emits most tokens per second, by what was measured here.

    G(k) = E(k) / t_b(k)          E: expected tokens per request and step (estimator)
                                  t_b: seconds of a step at load bucket b (steptimes)
    k*   = the smallest k in [min, max] with G(k) ≥ (1 − parsimony) · max G, among those with
           t_b(k) · (1 + 2·cv) ≤ inter-token bound, when one is set

At a fixed batch the argmax of tokens/s is also that of the mean time per token, so there is no second "latency
mode": an objective only adds the bound. Acceptance alone is the wrong signal: it hardly moves with load while the
right depth does.

A move needs a gain of `MARGIN` over the incumbent and `DWELL` steps at it. Going shallower is also right where nothing
is lost beyond `PARSIMONY`, for a draft that buys nothing still costs the drafter's energy; but only after
`PARITY_STEPS` steps in a row say so, or noise would decide. Each load bucket keeps its own incumbent, so bursty load
does not thrash.

A bucket that is new measures its anchors first (incumbent, min, max: `ANCHOR_SAMPLES` clean steps each, giving up after
`ANCHOR_PATIENCE` steps). After that a share `probe_fraction` of steps tries the neighbour measured longest ago, one
that seems hopeless or too slow for the bound an eighth as often: what it was measured at may have been a slow spell of
the machine, and nothing else would show that it is over. A probe lasts four steps, because the first one verifies at
the old depth and drafts at the new, and is not a clean sample of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from streamserve.worker.specustream.estimator import Outcomes
from streamserve.worker.specustream.laws import Choice, Knowledge, Load
from streamserve.worker.specustream.policy import DepthPolicy
from streamserve.worker.specustream.steptimes import bucket_of

MARGIN = 0.03
PARSIMONY = 0.01
DWELL = 8
PARITY_STEPS = 32
ANCHOR_SAMPLES = 3
ANCHOR_PATIENCE = 12
PROBE_STEPS = 4
HOPELESS = 0.6
"""A neighbour predicted below this share of the best goodput, or to break the bound, is probed an eighth as often."""
SMOOTHING = 0.3


@dataclass(slots=True)
class _Bucket:
    incumbent: int
    dwell: int = 0
    parity: int = 0
    """Steps in a row at which a shallower depth was as good."""
    anchors: list[int] | None = None
    patience: int = ANCHOR_PATIENCE
    probe: int = 0
    probe_left: int = 0
    skipped: int = 0


class Goodput:
    """The default law. One instance per (policy, knowledge); replaced whole when the policy changes."""

    def __init__(self, policy: DepthPolicy, knowledge: Knowledge, rng: Random) -> None:
        self._policy = policy
        self._knowledge = knowledge
        self._rng = rng
        self._buckets: dict[int, _Bucket] = {}
        self._decoding = 0.0

    def choose(self, load: Load) -> Choice:
        """The depth to draft in this step, always within the policy's bounds."""
        self._decoding += SMOOTHING * (load.decoding - self._decoding) if self._decoding else load.decoding
        bucket = bucket_of(round(self._decoding))
        state = self._buckets.get(bucket)
        if state is None:
            state = self._buckets[bucket] = self._new_bucket(bucket)
        state.dwell += 1
        return self._anchor(bucket, state) or self._running_probe(state) or self._settle(bucket, state)

    def observe_acceptance(self, outcomes: Outcomes) -> None:
        self._knowledge.acceptance.observe(outcomes)

    def observe_step(self, bucket: int, depth: int, seconds: float) -> None:
        self._knowledge.step_times.observe(bucket, depth, seconds)

    def _new_bucket(self, bucket: int) -> _Bucket:
        low, high = self._policy.min_depth, self._policy.max_depth
        near = [state.incumbent for _, state in sorted(self._buckets.items(), key=lambda i: abs(i[0] - bucket))]
        incumbent = near[0] if near else (low + high + 1) // 2
        anchors = list(dict.fromkeys([incumbent, low, high]))
        return _Bucket(incumbent, anchors=anchors)

    def _anchor(self, bucket: int, state: _Bucket) -> Choice | None:
        while state.anchors:
            depth = state.anchors[0]
            if self._knowledge.step_times.count(bucket, depth) < ANCHOR_SAMPLES and state.patience > 0:
                state.patience -= 1
                return Choice(depth, "anchor")
            state.anchors.pop(0)
            state.patience = ANCHOR_PATIENCE
        return None

    def _running_probe(self, state: _Bucket) -> Choice | None:
        if state.probe_left:
            state.probe_left -= 1
            return Choice(state.probe, "probe")
        return None

    def _settle(self, bucket: int, state: _Bucket) -> Choice:
        goodput, best = self._rank(bucket, state.incumbent)
        state.parity = state.parity + 1 if best < state.incumbent else 0
        if best != state.incumbent and self._worth_it(state, goodput, best):
            state.incumbent, state.dwell, state.parity = best, 0, 0
        if self._rng.random() < self._policy.probe_fraction / PROBE_STEPS:
            probe = self._neighbour(bucket, state, goodput)
            if probe is not None:
                state.probe, state.probe_left = probe, PROBE_STEPS - 1
                return Choice(probe, "probe")
        return Choice(state.incumbent, "goodput")

    def _worth_it(self, state: _Bucket, goodput: list[float], best: int) -> bool:
        low = self._policy.min_depth
        current = goodput[state.incumbent - low]
        if current == 0.0:
            return True
        gain = goodput[best - low] / current
        if state.dwell < DWELL:
            return False
        return gain >= 1 + MARGIN or (gain >= 1 - PARSIMONY and state.parity >= PARITY_STEPS)

    def _rank(self, bucket: int, incumbent: int) -> tuple[list[float], int]:
        """G(k) for k = min..max (0 where the inter-token bound forbids k), and the depth to prefer."""
        low, high = self._policy.min_depth, self._policy.max_depth
        seconds = self._knowledge.step_times.curve(bucket, high)
        if not seconds:
            return [], incumbent
        expected = self._knowledge.acceptance.expected_emitted(high)
        bound = self._policy.itl_seconds
        slack = 1 + 2 * self._knowledge.step_times.variation(bucket)
        goodput = [
            0.0 if bound and seconds[k] * slack > bound else expected[k] / seconds[k] for k in range(low, high + 1)
        ]
        top = max(goodput)
        if top == 0.0:
            # Every depth breaks the bound; the shallowest breaks it least.
            return [1.0] + [0.0] * (high - low), low
        return goodput, low + next(i for i, g in enumerate(goodput) if g >= (1 - PARSIMONY) * top)

    def _neighbour(self, bucket: int, state: _Bucket, goodput: list[float]) -> int | None:
        low, high = self._policy.min_depth, self._policy.max_depth
        near = [k for k in (state.incumbent - 1, state.incumbent + 1) if low <= k <= high]
        near.sort(key=lambda k: self._knowledge.step_times.last_at(bucket, k))
        hopeful = [k for k in near if not goodput or goodput[k - low] >= HOPELESS * max(goodput)]
        if len(hopeful) < len(near):
            state.skipped += 1
            if state.skipped % 8 == 0:
                hopeful = near
        return hopeful[0] if hopeful else None
