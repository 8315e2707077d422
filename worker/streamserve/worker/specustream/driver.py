"""Runs the law inside the scheduler's loop and writes the record; knows no vLLM.

One call per event: a step is scheduled, a draft was judged, a step is done, a request finished. A step that is
scheduled gets a ticket; when its output arrives the ticket says what the time it took was for:

    seconds = now − previous step's output      the whole loop, scheduling and hand-over included, while busy
              now − scheduled at                after idling

Only clean steps teach step times: no prefill in it, not after idling, and drafted at the depth that it verified
(the drafts verified now were chosen one step ago, so the first step after a change belongs to neither depth).

The law may fail; the engine may not. Whatever the law raises ends its reign: depths come from vLLM's own static table,
moved into the bounds, until the next configuration, and the record says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from streamserve.worker.specustream.laws import Knowledge, Law, Load
from streamserve.worker.specustream.laws.make import make_law
from streamserve.worker.specustream.policy import MAX_DEPTH, Adopted, Configure, DepthPolicy
from streamserve.worker.specustream.record import DEPTHS, RecordWriter, RequestRecord
from streamserve.worker.specustream.stepfit import StepFit
from streamserve.worker.specustream.steptimes import bucket_of

PREFILL_DECAY = 0.9
# An engine's first steps allocate, fill caches and build kernels: their times say nothing of later ones.
COLD_PREFILL_STEPS = 2
COLD_DECODE_STEPS = 4


@dataclass(slots=True)
class LiveRequest:
    """What is counted of a request while it lives here."""

    added_at: float
    uncomputed_tokens: int = 0
    depth_mask: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    external_tokens: int = 0
    blocks_received: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A step between being scheduled and its output."""

    started_at: float
    depth: int
    verified: int
    decoding: int
    prefill_tokens: int


class Driver:
    """One per engine. Not thread-safe: vLLM calls it on the engine core's only thread."""

    def __init__(
        self,
        *,
        policy: DepthPolicy,
        adopted: Adopted,
        built_depth: int,
        writer: RecordWriter | None,
        rng: Random,
        clock: Callable[[], float],
        prefill_only: bool = False,
    ) -> None:
        self._built_depth = built_depth
        self._prefill_only = prefill_only
        self._writer = writer
        self._rng = rng
        self._clock = clock
        self._knowledge = Knowledge.empty()
        self._live: dict[str, LiveRequest] = {}
        self._judged: dict[tuple[int, int, bool], int] = {}
        self._tickets: deque[Ticket] = deque(maxlen=64)
        self._previous_output_at: float | None = None
        self._fit = StepFit()
        self._prefill_seconds = self._prefill_recent = 0.0
        self._prefill_steps = 0
        self._steps = self._decode_steps = self._decode_request_steps = 0
        self._drafted = self._accepted = self._prefill_tokens = 0
        self._waiting_tokens = self._finished = self._fallbacks = 0
        self._transfers = self._blocks = 0
        self._depth_steps = [0] * DEPTHS
        self._drafted_at = [0] * MAX_DEPTH
        self._accepted_at = [0] * MAX_DEPTH
        self._depth = 0
        self._last_step_seconds = 0.0
        self._fallback = ""
        self.running = self.waiting = self.free_blocks = self.total_blocks = 0
        self._adopt(Configure(adopted, policy))

    @property
    def policy(self) -> DepthPolicy:
        """The policy in force, after the engine's own limits."""
        return self._policy

    @property
    def adopted(self) -> Adopted:
        return self._adopted

    def configure(self, message: Configure) -> Adopted:
        """Take over `message` when it is newer than what is in force; returns what is in force afterwards."""
        if message.version > self._adopted:
            self._adopt(message)
        return self._adopted

    def _adopt(self, message: Configure) -> None:
        policy = message.policy.within(self._built_depth)
        if self._prefill_only:
            # The prefill side computes prompts; a draft there would be verified by nobody.
            policy = DepthPolicy(policy="Off")
        self._adopted = message.version
        self._policy = policy
        # What is shown is never outside the bounds in force, even before an idle engine's next step.
        self._depth = min(policy.clamp(self._depth), policy.ceiling)
        self._law: Law | None = make_law(policy, self._knowledge, self._rng)
        self._fallback = ""

    def request_added(self, request_id: str, uncomputed_tokens: int) -> None:
        self._live[request_id] = LiveRequest(self._clock(), uncomputed_tokens)
        self._waiting_tokens += uncomputed_tokens

    def request_received(self, request_id: str, tokens: int, blocks: int) -> None:
        """The prompt's KV, or a part of it, came from another engine."""
        live = self._live.get(request_id)
        if live is not None and not live.blocks_received and blocks:
            live.external_tokens, live.blocks_received = tokens, blocks
            self._transfers += 1
            self._blocks += blocks

    def prompt_progress(self, request_id: str, uncomputed_tokens: int) -> None:
        """After this step, so many prompt tokens of the request remain to be computed."""
        live = self._live.get(request_id)
        if live is not None:
            self._waiting_tokens += uncomputed_tokens - live.uncomputed_tokens
            live.uncomputed_tokens = uncomputed_tokens

    def step_scheduled(
        self, *, decoding: Sequence[str], sampling: int, prefill_tokens: int, verified: int, static_depth: int
    ) -> int:
        """The depth to draft in this step, which samples for `sampling` requests, `decoding` among them."""
        depth = self._choose(sampling, static_depth)
        self._depth = depth
        self._steps += 1
        self._prefill_tokens += prefill_tokens
        if decoding:
            self._decode_steps += 1
            self._depth_steps[depth] += 1
            self._decode_request_steps += len(decoding)
            bit = 1 << depth
            for request_id in decoding:
                live = self._live.get(request_id)
                if live is not None:
                    live.depth_mask |= bit
                    live.steps += 1
        self._tickets.append(Ticket(self._clock(), depth, verified, len(decoding), prefill_tokens))
        return depth

    def _choose(self, sampling: int, static_depth: int) -> int:
        if self._law is not None:
            try:
                depth = self._law.choose(Load(decoding=max(sampling, 1))).depth
                if self._policy.clamp(depth) == depth:
                    return depth
                raise ValueError(f"depth {depth} is outside the policy's bounds")
            except Exception as error:
                self._law = None
                self._fallback = f"{type(error).__name__}: {error}"
        self._fallbacks += 1
        return min(self._policy.clamp(min(static_depth, self._built_depth)), self._policy.ceiling)

    def draft_judged(self, request_id: str, drafted: int, accepted: int, *, representative: bool = True) -> None:
        """`drafted` tokens were verified and the first `accepted` held. `representative` is false near the length
        limit, where the drafts are padding and say nothing about the drafter."""
        if drafted <= 0:
            return
        live = self._live.get(request_id)
        if live is not None:
            live.drafted += drafted
            live.accepted += accepted
        outcome = (drafted, accepted, representative)
        self._judged[outcome] = self._judged.get(outcome, 0) + 1

    def _learn(self) -> None:
        """Take in what was judged since the last call. Few different outcomes stand for many requests."""
        judged, self._judged = self._judged, {}
        for (drafted, accepted, _), requests in judged.items():
            self._drafted += drafted * requests
            self._accepted += accepted * requests
            for position in range(min(drafted, MAX_DEPTH)):
                self._drafted_at[position] += requests
            for position in range(min(accepted, MAX_DEPTH)):
                self._accepted_at[position] += requests
        telling = {outcome[:2]: requests for outcome, requests in judged.items() if outcome[2]}
        if telling and self._law is not None:
            self._law.observe_acceptance(telling)

    def step_done(self) -> None:
        """The output of the oldest scheduled step was processed."""
        self._learn()
        if not self._tickets:
            return
        ticket = self._tickets.popleft()
        now = self._clock()
        continuous = self._previous_output_at is not None
        since = self._previous_output_at if self._previous_output_at is not None else ticket.started_at
        seconds = now - since
        self._previous_output_at = now
        self._last_step_seconds = seconds
        if ticket.prefill_tokens:
            self._prefill_steps += 1
            if self._prefill_steps <= COLD_PREFILL_STEPS:
                return
            self._prefill_recent = PREFILL_DECAY * self._prefill_recent + ticket.prefill_tokens
            self._prefill_seconds = PREFILL_DECAY * self._prefill_seconds + seconds
        elif ticket.decoding and continuous:
            if self._decode_steps > COLD_DECODE_STEPS:
                self._fit.observe(ticket.decoding, seconds)
            if ticket.verified == ticket.depth and self._law is not None:
                self._law.observe_step(bucket_of(ticket.decoding), ticket.depth, seconds)

    def idle(self) -> None:
        """Nothing runs, or a step computed nothing: the next step's time starts when it is scheduled."""
        self._previous_output_at = None

    def request_finished(self, request_id: str, external_id: str) -> None:
        """Put the request into the ring; called before vLLM emits its last output, but for a stop string."""
        live = self._live.pop(request_id, None)
        if live is None:
            return
        self._waiting_tokens -= live.uncomputed_tokens
        self._finished += 1
        if self._writer is not None:
            record = RequestRecord(
                live.depth_mask,
                live.drafted,
                live.accepted,
                live.steps,
                live.external_tokens,
                live.blocks_received,
                live.added_at,
            )
            self._writer.finish(external_id, record)

    def failed(self, error: Exception) -> None:
        """Our own bookkeeping raised: give up the law, keep the engine."""
        self._law = None
        self._fallbacks += 1
        self._fallback = f"{type(error).__name__}: {error}"

    def publish(self) -> None:
        """Write the figures; the order is that of `record.Figures`."""
        if self._writer is None:
            return
        if self._judged:
            self._learn()
        base, slope = self._fit.line()
        rate = self._prefill_recent / self._prefill_seconds if self._prefill_seconds else 0.0
        self._writer.write_values(
            (
                self._steps,
                self._decode_steps,
                self._depth,
                self.running,
                self.waiting,
                self._waiting_tokens,
                self._drafted,
                self._accepted,
                self._decode_request_steps,
                self._decode_request_steps + self._accepted,
                self._prefill_tokens,
                self.free_blocks,
                self.total_blocks,
                self._adopted.generation,
                self._adopted.step,
                self._finished,
                self._transfers,
                self._blocks,
                self._fallbacks,
            ),
            (base, slope, self._last_step_seconds, rate, self._clock()),
            self._depth_steps,
            self._drafted_at,
            self._accepted_at,
            self._fallback,
        )
