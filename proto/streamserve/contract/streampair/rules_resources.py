"""Rules about what a worker's pod asks for: Kubernetes refuses a pod whose requests and limits do not fit together.

What a node may promise more of than it has (processors, memory, its own disk) is requested up to its limit. Of anything
else, a GPU or huge pages, a pod has what it asks for: the request is the limit.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from streamserve.contract.streampair.fields import QUANTITY_PATTERN
from streamserve.contract.streampair.rule import Cel, Rule
from streamserve.contract.streampair.workers import Resources

_UNITS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000**power) for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Fraction(1024**power) for power, unit in enumerate("KMGTPE", 1)},
}


class Request(NamedTuple):
    """A resource that a pod asks for, and its limit, if it has one."""

    name: str
    asked: int | str
    limit: int | str | None

    @property
    def is_shared(self) -> bool:
        """Whether a node may promise more of it than it has: Kubernetes says so of its own but huge pages."""
        return ("/" not in self.name or "kubernetes.io/" in self.name) and not self.name.startswith("hugepages-")

    @property
    def is_at_most_the_limit(self) -> bool:
        return self.limit is None or amount(self.asked) <= amount(self.limit)

    @property
    def is_the_limit(self) -> bool:
        return self.limit is not None and amount(self.asked) == amount(self.limit)


def amount(quantity: int | str) -> Fraction:
    """A Kubernetes quantity as a number."""
    found = re.fullmatch(QUANTITY_PATTERN, str(quantity))
    suffix = (found and found[2]) or ""
    return Fraction(str(quantity).removesuffix(suffix)) * _UNITS[suffix]


def _huge_pages(resources: Resources) -> list[str]:
    return [name for name in resources.limits if name.startswith("hugepages-")]


def _has_other_memory(resources: Resources) -> bool:
    return any(name in asked for asked in (resources.limits, resources.requests) for name in ("cpu", "memory"))


_OTHER = " || ".join(f"'{name}' in self.{kind}" for kind in ("limits", "requests") for name in ("cpu", "memory"))


def _requests(resources: Resources) -> Iterator[Request]:
    for name, asked in resources.requests.items():
        yield Request(name, asked, resources.limits.get(name))


_SHARED = "((!name.contains('/') || name.contains('kubernetes.io/')) && !name.startsWith('hugepages-'))"
_COMPARED = "quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name])))"
_ABOVE = f"name in self.limits && {_SHARED} && {_COMPARED} > 0"
_APART = f"!{_SHARED} && (!(name in self.limits) || {_COMPARED} != 0)"

RULES: tuple[Rule[Any], ...] = tuple(
    rule
    for role in ("prefill", "decode")
    for rule in (
        Rule[Request](
            id="request-at-most-the-limit",
            scope=("spec", role, "resources"),
            each=_requests,
            at=lambda request: ("requests", request.name),
            holds=lambda request: not request.is_shared or request.is_at_most_the_limit,
            message="{name} {asked} is above its limit {limit}: lower it or raise the limit",
            values=lambda request: {"name": request.name, "asked": request.asked, "limit": request.limit},
            cel=(
                Cel(
                    f"!self.requests.exists(name, {_ABOVE})",
                    {"name": "found", "asked": "self.requests[found]", "limit": "self.limits[found]"},
                    found=f"self.requests.filter(name, {_ABOVE})[0]",
                    at=("requests",),
                ),
            ),
        ),
        Rule[Request](
            id="device-request-is-its-limit",
            scope=("spec", role, "resources"),
            each=_requests,
            at=lambda request: ("requests", request.name),
            holds=lambda request: request.is_shared or request.is_the_limit,
            message="{name} is not shared between pods, so its request is its limit: write it in limits alone",
            values=lambda request: {"name": request.name},
            cel=(
                Cel(
                    f"!self.requests.exists(name, {_APART})",
                    {"name": "found"},
                    found=f"self.requests.filter(name, {_APART})[0]",
                    at=("requests",),
                ),
            ),
        ),
        Rule[Resources](
            id="huge-pages-beside-memory",
            scope=("spec", role, "resources"),
            at=lambda resources: ("limits", _huge_pages(resources)[0]),
            holds=lambda resources: not _huge_pages(resources) or _has_other_memory(resources),
            message="huge pages come with other memory: add memory or cpu",
            cel=(
                Cel(
                    f"!self.limits.exists(name, name.startsWith('hugepages-')) || {_OTHER}",
                    at=("limits",),
                ),
            ),
        ),
    )
)
