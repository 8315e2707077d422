"""The simulator's continuous batching, without time or tasks: what runs in the next step, and what came of it.

It follows vLLM's scheduler where a router or a test can tell the difference:

- at most `max_running` sequences run; the others wait by priority, then by arrival;
- a step computes at most `max_step_tokens`: running sequences first, then new prompts, in chunks;
- a sequence with one token left to compute decodes: it verifies the drafts of the step before and emits one token
  more than were accepted;
- blocks are taken before tokens are computed; when there are none, the latest running sequence loses its own and
  computes everything again later (preemption by recomputation);
- a sequence whose KV comes from elsewhere has its blocks taken, then waits outside the batch for the transfer; once it
  is here, it passes those that still wait for blocks.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from streamserve.worker.pipeserve.simulated_kv import BlockPool


class Stage(Enum):
    WAITING = "waiting"
    PULLING = "pulling"
    RUNNING = "running"
    HELD = "held"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """One request's progress. `computed` counts tokens whose KV is here."""

    request_id: str
    order: tuple[int, int]
    prompt_ids: Sequence[int]
    max_tokens: int
    hold: bool = False
    remote: bool = False
    pulled: bool = False
    stage: Stage = Stage.WAITING
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    depths_mask: int = 0

    @property
    def known(self) -> int:
        return len(self.prompt_ids) + self.generated

    @property
    def left(self) -> int:
        """Tokens to compute before the next one is known; 1 means decoding."""
        return self.known - self.computed


@dataclass(slots=True)
class Step:
    """One planned step: (sequence, tokens to compute, drafts to verify), and the depth drafted at its end."""

    work: list[tuple[SimulatedSequence, int, int]] = field(default_factory=list)
    depth: int = 0
    decoding: int = 0
    prefill_tokens: int = 0

    @property
    def verified_depth(self) -> int:
        return max((drafts for _, _, drafts in self.work), default=0)


@dataclass(frozen=True, slots=True)
class Emission:
    """What one sequence gained: `tokens` new ones from `first_index`, or a whole prompt that is now held."""

    sequence: SimulatedSequence
    first_index: int
    tokens: int
    drafted: int
    accepted: int


class Scheduler:
    """Owns the sequences and the blocks. Every method leaves `pool.used` equal to the blocks of live sequences."""

    def __init__(self, *, max_running: int, max_step_tokens: int, block_tokens: int, total_blocks: int) -> None:
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.block_tokens = block_tokens
        self.pool = BlockPool(total_blocks)
        self.waiting: list[SimulatedSequence] = []
        self.running: list[SimulatedSequence] = []
        self.pulling: dict[str, SimulatedSequence] = {}
        self.held: dict[str, SimulatedSequence] = {}
        self.preemptions = 0

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Tokens still to compute of prompts that are not decoding yet; what is pulled needs no computing."""
        waiting = sum(s.left for s in self.waiting if not s.remote)
        return waiting + sum(s.left for s in self.running if s.left > 1)

    def add(self, sequence: SimulatedSequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def start_pulls(self) -> list[SimulatedSequence]:
        """Waiting sequences whose blocks have just been taken, so that their KV can come."""
        started = []
        for sequence in [s for s in self.waiting if s.remote and not s.pulled]:
            if not self._grow(sequence, sequence.known + 1):
                break
            self.waiting.remove(sequence)
            sequence.stage = Stage.PULLING
            self.pulling[sequence.request_id] = sequence
            started.append(sequence)
        return started

    def pulled(self, sequence: SimulatedSequence) -> None:
        """The KV of all but the last prompt token counts as here; that one is computed to sample position 0."""
        if self.pulling.pop(sequence.request_id, None) is not None:
            sequence.computed = len(sequence.prompt_ids) - 1
            sequence.pulled = True
            sequence.stage = Stage.WAITING
            self.add(sequence)

    def plan(self, choose_depth: Callable[[int], int], ceiling: int) -> Step:
        """The next step; empty when nothing can run. `choose_depth(decoding)` is asked once where something decodes.

        No draft deeper than `ceiling` is verified, so a bound that was just lowered holds from this step on.
        """
        step = Step()
        budget = self.max_step_tokens
        for sequence in list(self.running):
            if sequence.stage is not Stage.RUNNING or budget <= 0:
                continue
            room = len(sequence.prompt_ids) + sequence.max_tokens - sequence.known - 1
            drafts = max(min(sequence.drafts, ceiling, room, budget - 1), 0) if sequence.left == 1 else 0
            tokens = min(sequence.left, budget)
            if not self._grow_or_preempt(sequence, sequence.computed + tokens + drafts):
                continue
            step.work.append((sequence, tokens, drafts))
            budget -= tokens + drafts
        # A sequence may have been preempted after it was planned.
        step.work = [item for item in step.work if item[0].stage is Stage.RUNNING]
        self._admit(step, budget)
        step.decoding = sum(1 for sequence, _, _ in step.work if sequence.left == 1)
        step.prefill_tokens = sum(tokens for sequence, tokens, _ in step.work if sequence.left > 1)
        if step.decoding:
            step.depth = choose_depth(step.decoding)
        return step

    def _admit(self, step: Step, budget: int) -> None:
        full = False
        for sequence in [s for s in self.waiting if s.pulled or not s.remote]:
            if budget <= 0 or len(self.running) >= self.max_running:
                return
            if full and not sequence.blocks:
                continue
            if not self._grow(sequence, sequence.known + (0 if sequence.hold else 1)):
                # Those behind it that were pulled hold theirs already, which come back only when they have run.
                full = True
                continue
            self.waiting.remove(sequence)
            sequence.stage = Stage.RUNNING
            self.running.append(sequence)
            tokens = min(sequence.left, budget)
            step.work.append((sequence, tokens, 0))
            budget -= tokens

    def _grow_or_preempt(self, sequence: SimulatedSequence, tokens: int) -> bool:
        while not self._grow(sequence, tokens):
            victim = max(self.running, key=_order)
            self.running.remove(victim)
            self._release(victim)
            victim.computed = victim.drafts = 0
            victim.remote = False
            victim.stage = Stage.WAITING
            self.add(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        return True

    def _grow(self, sequence: SimulatedSequence, tokens: int) -> bool:
        missing = self.blocks_of(tokens) - sequence.blocks
        if missing > 0 and not self.pool.take(missing):
            return False
        sequence.blocks += max(missing, 0)
        return True

    def _release(self, sequence: SimulatedSequence) -> None:
        self.pool.give(sequence.blocks)
        sequence.blocks = 0

    def finish(self, step: Step, accepts: Callable[[int], float], rng: Random) -> list[Emission]:
        """What the step brought. Sequences that reached their end, or hold their prompt, have left the batch."""
        emissions = []
        for sequence, tokens, drafts in step.work:
            if sequence.stage is not Stage.RUNNING:
                continue  # aborted while the step ran
            complete = tokens == sequence.left
            sequence.computed += tokens
            if not complete:
                continue
            if sequence.hold:
                self.running.remove(sequence)
                sequence.stage = Stage.HELD
                self.held[sequence.request_id] = sequence
                emissions.append(Emission(sequence, 0, 0, 0, 0))
                continue
            emissions.append(self._emit(sequence, drafts, step.depth, accepts, rng))
        return emissions

    def _emit(
        self, sequence: SimulatedSequence, drafts: int, depth: int, accepts: Callable[[int], float], rng: Random
    ) -> Emission:
        accepted = 0
        while accepted < drafts and rng.random() < accepts(accepted):
            accepted += 1
        first = sequence.generated
        tokens = min(1 + accepted, sequence.max_tokens - first)
        sequence.generated += tokens
        # The KV of accepted drafts is valid; that of the token just sampled is not computed yet.
        sequence.computed = sequence.known - 1
        sequence.drafts = depth
        sequence.drafted += drafts
        sequence.accepted += accepted
        if first or sequence.remote:
            sequence.depths_mask |= 1 << depth
        if sequence.generated >= sequence.max_tokens:
            self.end(sequence)
        return Emission(sequence, first, tokens, drafts, accepted)

    def end(self, sequence: SimulatedSequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks. Idempotent."""
        match sequence.stage:
            case Stage.WAITING:
                self.waiting.remove(sequence)
            case Stage.PULLING:
                self.pulling.pop(sequence.request_id)
            case Stage.RUNNING:
                self.running.remove(sequence)
            case Stage.HELD:
                self.held.pop(sequence.request_id)
            case Stage.ENDED:
                return
        self._release(sequence)
        sequence.stage = Stage.ENDED


def _order(sequence: SimulatedSequence) -> tuple[int, int]:
    return sequence.order
