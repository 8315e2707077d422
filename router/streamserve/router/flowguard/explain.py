"""A decision as `ExplainRoute` shows it: every candidate, term by term, with the inputs that it stands on.

In words, a candidate that was not taken names the term in which it is dearest, against the one that was, and what
that term stands on: "0.31 s dearer, most of it decode_step (+0.29 s): predicted_tpot 14 ms against 5 ms, …".
"""

from __future__ import annotations

import math
from typing import Final

from streamserve.contract.runtime_config import RoutingPolicy
from streamserve.router.flowguard.decision import Candidate, Decision, DecodeEstimate, NoLane, PrefillEstimate
from streamserve.router.flowguard.pick import near_tie_seconds
from streamserve.v1 import admin_pb2

_U32: Final = 2**32 - 1


def explained(outcome: Decision | NoLane) -> admin_pb2.ExplainRouteResponse:
    """The answer of ExplainRoute for a pick that was made, or that could not be. The chosen candidate comes first."""
    answer = admin_pb2.ExplainRouteResponse(
        refused=[admin_pb2.Refusal(lane=refusal.lane, reason=str(refusal)) for refusal in outcome.refused]
    )
    if isinstance(outcome, NoLane):
        return answer
    answer.chosen = outcome.lane
    answer.policy = outcome.policy
    others = sorted((c for c in outcome.candidates if c is not outcome.chosen), key=lambda c: c.cost_seconds)
    answer.candidates.extend(_candidate(candidate, outcome) for candidate in (outcome.chosen, *others))
    return answer


def _candidate(candidate: Candidate, decision: Decision) -> admin_pb2.Candidate:
    return admin_pb2.Candidate(
        lane=candidate.lane,
        prefill_worker=candidate.prefill_worker or "",
        decode_worker=candidate.decode_worker or "",
        cost_seconds=candidate.cost_seconds,
        terms=[admin_pb2.Term(name=name, value=value, unit=unit) for name, value, unit in terms(candidate)],
        prefill_signal_age_ms=age_ms(candidate.prefill.signal_age_seconds) if candidate.prefill else 0,
        decode_signal_age_ms=age_ms(candidate.decode.signal_age_seconds) if candidate.decode else 0,
        reason=reason(candidate, decision),
    )


def reason(candidate: Candidate, decision: Decision) -> str:
    """Why this candidate was taken, or was not."""
    taken = candidate is decision.chosen
    if decision.policy == RoutingPolicy.ROUND_ROBIN:
        return "its turn" if taken else "not its turn"
    if decision.policy == RoutingPolicy.LEAST_REQUEST:
        return "no other has fewer requests" if taken else "no fewer requests than the one taken"
    limit = near_tie_seconds(decision.candidates)
    ties = sum(other.cost_seconds <= limit for other in decision.candidates)
    if taken:
        return "the least cost" if ties == 1 else f"by chance among {ties} near the least cost"
    if candidate.cost_seconds <= limit:
        return "as good as the one taken, which chance decided"
    return _dearer(candidate, decision.chosen)


def _dearer(candidate: Candidate, chosen: Candidate) -> str:
    more = candidate.cost_seconds - chosen.cost_seconds
    base = dict(chosen.weighted)
    extra, name = max((seconds - base[name], name) for name, seconds in candidate.weighted)
    return f"{more:.3g} s dearer, most of it {name} (+{extra:.3g} s){_stands_on(name, candidate, chosen)}"


def _stands_on(name: str, candidate: Candidate, chosen: Candidate) -> str:
    """What the term is made of, where the two differ."""
    mine, other = _inputs(name, candidate), _inputs(name, chosen)
    differing = [
        f"{what} {mine[what]} against {other.get(what, '-')}" for what in mine if mine[what] != other.get(what)
    ]
    return f": {', '.join(differing)}" if differing else ""


def _inputs(name: str, candidate: Candidate) -> dict[str, str]:
    prefill, decode = candidate.prefill, candidate.decode
    if name == "prefill" and prefill is not None:
        ahead = prefill.queued_tokens + prefill.booked_tokens
        return {"prompt tokens ahead": str(ahead), "prefill_rate": f"{prefill.tokens_per_second:.0f} tokens/s"}
    if decode is None:
        return {}
    if name == "kv_pressure":
        return {"kv_used": f"{decode.kv_used_fraction:.0%}"}
    tpot = {"predicted_tpot": f"{1e3 * decode.tpot_seconds:.3g} ms", "batch": str(decode.batch)}
    if name == "decode_wait":
        return tpot
    if name in ("decode_step", "slo"):
        emitted = f"{decode.emitted_tokens_per_step:.3g} tokens"
        return {**tpot, "emitted_per_step": emitted, "acceptance": f"{decode.acceptance:.0%}"}
    return {}


def terms(candidate: Candidate) -> list[tuple[str, float, str]]:
    """(name, value, unit) of each term of the cost, what a weight other than 100 % makes of it, then of what the terms
    stand on."""
    prefill, decode = candidate.prefill, candidate.decode
    shown: list[tuple[str, float, str]] = [
        ("prefill", prefill.seconds if prefill else 0.0, "s"),
        ("transfer", candidate.transfer_seconds, "s"),
        ("decode_wait", decode.wait_seconds if decode else 0.0, "s"),
        ("decode_step", candidate.decode_step_seconds, "s"),
        ("kv_pressure", decode.pressure_seconds if decode else 0.0, "s"),
        ("slo", candidate.slo_seconds, "s"),
    ]
    plain = {name: seconds for name, seconds, _ in shown}
    shown += [
        (f"weighted_{name}", seconds, "s")
        for name, seconds in candidate.weighted
        if not math.isclose(seconds, plain[name])
    ]
    shown.append(("predicted_ttft", candidate.ttft_seconds, "s"))
    if prefill is not None:
        shown += _prefill_inputs(prefill)
    if decode is not None:
        shown.append(("best_tpot", candidate.best_tpot_seconds, "s"))
        shown += _decode_inputs(decode)
    return shown


def _prefill_inputs(estimate: PrefillEstimate) -> list[tuple[str, float, str]]:
    return [
        ("queued_prompt_tokens", float(estimate.queued_tokens), "tokens"),
        ("booked_prompt_tokens", float(estimate.booked_tokens), "tokens"),
        ("uncached_prompt_tokens", float(estimate.uncached_tokens), "tokens"),
        ("prefill_rate", estimate.tokens_per_second, "tokens/s"),
        ("prefill_trust", estimate.trust, ""),
    ]


def _decode_inputs(estimate: DecodeEstimate) -> list[tuple[str, float, str]]:
    return [
        ("predicted_tpot", estimate.tpot_seconds, "s"),
        ("batch", float(estimate.batch), "requests"),
        ("emitted_per_step", estimate.emitted_tokens_per_step, "tokens"),
        ("acceptance", estimate.acceptance, "fraction"),
        ("expected_output", estimate.expected_output_tokens, "tokens"),
        ("kv_used", estimate.kv_used_fraction, "fraction"),
        ("decode_trust", estimate.trust, ""),
    ]


def age_ms(age_seconds: float) -> int:
    """For the wire: whole milliseconds, the largest number when there never was a signal."""
    return _U32 if math.isinf(age_seconds) else min(_U32, round(age_seconds * 1e3))
