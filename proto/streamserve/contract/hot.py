"""The hot part of a spec as the configuration that workers and routers read: camelCase with defaults → whole values."""

from __future__ import annotations

from pydantic import ValidationError

from streamserve.contract import runtime_config as rc
from streamserve.contract.streampair import StreamPair
from streamserve.contract.streampair.policies import Speculation, Targets


class HotError(ValueError):
    """The spec is valid, but a hot value is outside what this release's components take."""


def runtime_config(pair: StreamPair, uid: str, generation: int, step: int = 0) -> rc.RuntimeConfig:
    """Everything hot of this pair, under the identity (uid, generation, step). Raises HotError."""
    spec = pair.spec
    routing, admission = spec.routing, spec.admission
    try:
        return rc.RuntimeConfig(
            id=rc.ConfigId(uid=uid, generation=generation, step=step),
            served_names=pair.served_names,
            speculation=_speculation(spec.speculation),
            slo=_slo(spec.slo.default),
            workload_slos={row.name: _slo(spec.slo.targets_for(row.name)) for row in spec.slo.workloads},
            routing=rc.RoutingConfig(
                policy=rc.RoutingPolicy(routing.policy.value),
                weights_percent=rc.RoutingWeights(**routing.weights_percent.model_dump(by_alias=False)),
                local_prefill_max_tokens=routing.local_prefill_max_tokens,
                cross_lane=rc.CrossLane(routing.cross_lane.value),
                signal_trust_ms=routing.signal_trust_milliseconds,
            ),
            admission=rc.AdmissionConfig(
                max_queued_requests=admission.max_queued_requests,
                max_queued_tokens=admission.max_queued_tokens,
                max_queue_ms=admission.max_queue_milliseconds,
            ),
            failure_policy=rc.FailurePolicy(spec.failure_policy.value),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise HotError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise HotError(f"{error}: not in this release") from None


def _speculation(spec: Speculation) -> rc.SpeculationConfig:
    """Without a drafting method every depth is 0, whatever the policy says. With the policy Off as well: the kill
    switch has to fit engines, too, that were built for a smaller maxDepth and wait to be replaced."""
    if spec.method.value == "None" or spec.policy.value == "Off":
        return rc.SpeculationConfig(policy=rc.DepthPolicyName.OFF)
    return rc.SpeculationConfig(
        policy=rc.DepthPolicyName(spec.policy.value),
        min_depth=spec.depth.min,
        max_depth=spec.depth_max,
        fixed_depth=spec.depth_fixed,
        inter_token_latency_ms=spec.inter_token_latency_milliseconds,
        probe_percent=spec.probe_percent,
    )


def _slo(targets: Targets) -> rc.Slo:
    return rc.Slo(ttft_ms=targets.ttft_milliseconds, tpot_ms=targets.tpot_milliseconds)
