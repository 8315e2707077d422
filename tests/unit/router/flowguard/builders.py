"""Fleets and requests in one line each; what a case does not mention is ordinary: READY, fresh, idle, alike."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from streamserve.contract.identity import fingerprint
from streamserve.contract.runtime_config import ConfigId, FailurePolicy, RoutingConfig, RuntimeConfig
from streamserve.contract.signals import Flags, PositionAcceptance, Role, WorkerSignals, WorkloadAcceptance
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, Health, KvGeometry, LaneState, LaneView, WorkerView

UID = "uid-1"
NOW = 1_000.0
BLOCK_TOKENS = 16


def prompt(tokens: int = 100, *, output: int = 100, **more: Any) -> RouteRequest:
    return RouteRequest(prompt_tokens=tokens, max_tokens=output, **more)


def settings(*, failure: FailurePolicy = FailurePolicy.DEGRADE, **routing: Any) -> RuntimeConfig:
    return RuntimeConfig(id=ConfigId(uid=UID, generation=1), routing=RoutingConfig(**routing), failure_policy=failure)


def worker(name: str, lane_name: str, role: Role) -> WorkerView:
    signals = WorkerSignals(
        role=role,
        boot_id=1,
        epoch=1,
        uid_fingerprint=fingerprint(UID),
        max_running_requests=32,
        kv_blocks_total=10_000,
        prefill_tokens_per_second=10_000.0 if role is Role.PREFILL else 0.0,
        step_base_seconds=0.0 if role is Role.PREFILL else 0.01,
        step_per_request_seconds=0.0 if role is Role.PREFILL else 0.001,
        mean_emitted_tokens_per_step=0.0 if role is Role.PREFILL else 2.0,
        transfer_bytes_per_second=0.0 if role is Role.PREFILL else 1e9,
    )
    return WorkerView(
        id=name,
        role=role,
        lane=lane_name,
        revision="r1",
        address="127.0.0.1:1",
        pair_uid=UID,
        boot_id=1,
        signals=signals,
        seen_at_seconds=NOW,
        kv=KvGeometry(BLOCK_TOKENS, 65_536),
        max_model_tokens=100_000,
    )


@dataclass
class Lane:
    """`lane("a").queued(tokens=2_000).last_seen(seconds=9)`; workers are a-p0… and a-d0…"""

    name: str
    prefills: list[WorkerView] = field(default_factory=list)
    decodes: list[WorkerView] = field(default_factory=list)
    state: LaneState = LaneState.READY
    reason: str = ""
    degraded: bool = False
    unproven: set[str] = field(default_factory=set)

    def _signals(self, role: Role, **values: Any) -> Self:
        mine = self.prefills if role is Role.PREFILL else self.decodes
        mine[:] = [w if w.signals is None else replace(w, signals=replace(w.signals, **values)) for w in mine]
        return self

    def _every(self, **values: Any) -> Self:
        self.prefills[:] = [replace(w, **values) for w in self.prefills]
        self.decodes[:] = [replace(w, **values) for w in self.decodes]
        return self

    def idle(self) -> Self:
        return self

    def queued(self, tokens: int) -> Self:
        return self._signals(Role.PREFILL, waiting_prompt_tokens=tokens)

    def prefill_rate(self, tokens_per_second: float) -> Self:
        return self._signals(Role.PREFILL, prefill_tokens_per_second=tokens_per_second)

    def running(self, requests: int) -> Self:
        return self._signals(Role.DECODE, running_requests=requests)

    def waiting(self, requests: int) -> Self:
        return self._signals(Role.DECODE, waiting_requests=requests)

    def emitting(self, tokens_per_step: float) -> Self:
        return self._signals(Role.DECODE, mean_emitted_tokens_per_step=tokens_per_step)

    def workload(self, name: str, *, emitted: float, output: float = 0.0) -> Self:
        return self._signals(Role.DECODE, workloads=(WorkloadAcceptance(name, emitted, output),))

    def accepting(self, *positions: tuple[int, int]) -> Self:
        """(drafted, accepted) at each position."""
        return self._signals(Role.DECODE, positions=tuple(PositionAcceptance(*counts) for counts in positions))

    def bandwidth(self, bytes_per_second: float) -> Self:
        return self._signals(Role.DECODE, transfer_bytes_per_second=bytes_per_second)

    def kv_used(self, blocks: int) -> Self:
        return self._signals(Role.DECODE, kv_blocks_used=blocks)

    def flagged(self, flags: Flags, *, role: Role = Role.DECODE) -> Self:
        return self._signals(role, flags=flags)

    def of_pair(self, uid: str) -> Self:
        self._every(pair_uid="")
        return self._signals(Role.PREFILL, uid_fingerprint=fingerprint(uid))._signals(
            Role.DECODE, uid_fingerprint=fingerprint(uid)
        )

    def last_seen(self, seconds: float) -> Self:
        return self._every(seen_at_seconds=NOW - seconds)

    def revision(self, name: str) -> Self:
        return self._every(revision=name)

    def model_length(self, tokens: int) -> Self:
        return self._every(max_model_tokens=tokens)

    def vocabulary(self, size: int) -> Self:
        return self._every(vocabulary_size=size)

    def booked(self, *, tokens: int = 0, requests: int = 0) -> Self:
        """Tokens on the prefill workers, requests on the decode workers."""
        self.prefills[:] = [replace(w, booked_tokens=tokens) for w in self.prefills]
        self.decodes[:] = [replace(w, booked_requests=requests, own_requests=requests) for w in self.decodes]
        return self

    def health(self, health: Health, *, role: Role) -> Self:
        mine = self.prefills if role is Role.PREFILL else self.decodes
        mine[:] = [replace(w, health=health, health_detail="it did not answer") for w in mine]
        return self

    def silent_since_start(self) -> Self:
        return self._every(signals=None, seen_at_seconds=float("-inf"))

    def fenced(self, reason: str = "a worker restarted", *, degraded: bool = True) -> Self:
        self.state, self.reason, self.degraded = LaneState.FENCED, reason, degraded
        return self

    def at(self, state: LaneState) -> Self:
        self.state = state
        return self

    def without_proof(self, *ids: str) -> Self:
        self.unproven |= set(ids)
        return self

    def build(self) -> LaneView:
        pairs = {(p.id, d.id) for p in self.prefills for d in self.decodes}
        return LaneView(
            name=self.name,
            revision="r1",
            state=self.state,
            reason=self.reason,
            prefill=tuple(self.prefills),
            decode=tuple(self.decodes),
            proven=frozenset(pair for pair in pairs if not self.unproven & set(pair)),
            degraded=self.degraded,
        )


def lane(name: str, *, prefills: int = 1, decodes: int = 1) -> Lane:
    return Lane(
        name,
        [worker(f"{name}-p{i}", name, Role.PREFILL) for i in range(prefills)],
        [worker(f"{name}-d{i}", name, Role.DECODE) for i in range(decodes)],
    )


def fleet(*lanes: Lane) -> FleetView:
    return FleetView(now_seconds=NOW, pair_uid=UID, lanes=tuple(built.build() for built in lanes))
