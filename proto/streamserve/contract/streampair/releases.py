"""Values of the final API whose behaviour this release does not have: refused by name, never ignored.

A row goes away in the change that builds its behaviour. Rows have the shape of `rules.py`, so that the operator
can refuse the same values with the same words.
"""

from typing import Any

from streamserve.contract.streampair import rules_engine
from streamserve.contract.streampair.enums import DepthPolicy, Method, RoutingPolicy
from streamserve.contract.streampair.policies import Admission, Router, Routing, Speculation
from streamserve.contract.streampair.resource import StreamPair
from streamserve.contract.streampair.rule import Cel, Finding, Rule, here, literal

BUILT_DEPTH_POLICIES = (DepthPolicy.GOODPUT, DepthPolicy.FIXED, DepthPolicy.OFF)
BUILT_ROUTING_POLICIES = (RoutingPolicy.FLOW_GUARD, RoutingPolicy.ROUND_ROBIN, RoutingPolicy.LEAST_REQUEST)
UNBUILT_METHODS = (Method.SUFFIX, Method.MEDUSA)


def check(pair: StreamPair) -> list[Finding]:
    """Every value of this pair that is not in this release."""
    return [finding for rule in UNBUILT for finding in rule.findings(pair)]


UNBUILT: tuple[Rule[Any], ...] = (
    Rule[Speculation](
        id="release-depth-policy",
        scope=("spec", "speculation"),
        at=here("policy"),
        holds=lambda spec: spec.policy in BUILT_DEPTH_POLICIES,
        message=f"{{policy}} is not in this release: use {', '.join(BUILT_DEPTH_POLICIES)}",
        values=lambda spec: {"policy": spec.policy},
        cel=(Cel(f"self.policy in {literal(BUILT_DEPTH_POLICIES)}", {"policy": "self.policy"}, at=("policy",)),),
    ),
    Rule[Speculation](
        id="release-method",
        scope=("spec", "speculation"),
        at=here("method"),
        holds=lambda spec: spec.method not in UNBUILT_METHODS,
        message="{method} is not in this release: use None, DraftModel, Eagle, Eagle3, Mtp or Ngram",
        values=lambda spec: {"method": spec.method},
        cel=(Cel(f"!(self.method in {literal(UNBUILT_METHODS)})", {"method": "self.method"}, at=("method",)),),
    ),
    Rule[Routing](
        id="release-routing-policy",
        scope=("spec", "routing"),
        at=here("policy"),
        holds=lambda routing: routing.policy in BUILT_ROUTING_POLICIES,
        message=f"{{policy}} is not in this release: use {', '.join(BUILT_ROUTING_POLICIES)}",
        values=lambda routing: {"policy": routing.policy},
        cel=(Cel(f"self.policy in {literal(BUILT_ROUTING_POLICIES)}", {"policy": "self.policy"}, at=("policy",)),),
    ),
    Rule[Admission](
        id="release-tenants",
        scope=("spec", "admission"),
        at=here("tenants"),
        holds=lambda admission: not admission.tenants,
        message="tenants are not in this release: remove them, the queue bounds hold for all",
        cel=(Cel("self.tenants.size() == 0", at=("tenants",)),),
    ),
    Rule[Router](
        id="release-shared-router",
        scope=("spec", "router"),
        at=here("shared"),
        holds=lambda router: router.shared == "",
        message="a shared router is not in this release: leave it empty",
        cel=(Cel("self.shared == ''", at=("shared",)),),
    ),
    Rule[rules_engine.RoleView](
        id="release-data-parallel",
        scope=("spec",),
        each=rules_engine.roles,
        at=lambda view: view.at(rules_engine.DATA_PARALLEL),
        holds=rules_engine.one_rank,
        message="data parallel ranks are not in this release: set 1 and add lanes",
        cel=rules_engine.ONE_RANK,
    ),
)
