"""Rules about vLLM's flags and the GPUs they need, for the shared engine and for both roles."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from streamserve.contract.streampair import flags
from streamserve.contract.streampair.enums import ADAPTIVE_POLICIES
from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.resource import StreamPairSpec
from streamserve.contract.streampair.rule import Rule
from streamserve.contract.streampair.workers import Role, effective_args

ARGS_PATHS: tuple[Path, ...] = (
    ("spec", "engine", "args"),
    ("spec", "prefill", "engine", "args"),
    ("spec", "decode", "engine", "args"),
)


class RoleView(NamedTuple):
    """One role as its engine sees it."""

    name: str
    role: Role
    args: dict[str, str]
    spec: StreamPairSpec

    def at(self, flag: str) -> Path:
        """Where the flag that counts for this role is written, relative to spec."""
        if flag in self.role.engine.args:
            return (self.name, "engine", "args", flag)
        return ("engine", "args", flag)


class Difference(NamedTuple):
    flag: str
    prefill: str | None
    decode: str | None
    role: str


def roles(spec: StreamPairSpec) -> tuple[RoleView, RoleView]:
    """Prefill and decode, each with the flags it starts with."""
    return (
        RoleView("prefill", spec.prefill, effective_args(spec.engine, spec.prefill), spec),
        RoleView("decode", spec.decode, effective_args(spec.engine, spec.decode), spec),
    )


def gpus(role: Role) -> tuple[Path, int | str] | None:
    """GPUs that each pod of the role asks for and where, or None when it asks for none."""
    for kind, quantities in (("limits", role.resources.limits), ("requests", role.resources.requests)):
        for name, count in quantities.items():
            if name.endswith("/gpu"):
                return ("resources", kind, name), count
    return None


def _gpus_match(view: RoleView) -> bool:
    asked, needed = gpus(view.role), flags.world_size(view.args)
    return asked is None or needed is None or str(asked[1]) == str(needed)


def _gpu_place(view: RoleView) -> Path:
    asked = gpus(view.role)
    return (view.name, *asked[0]) if asked else (view.name, "resources")


def _gpu_message(view: RoleView) -> str:
    asked = gpus(view.role)
    return (
        f"asks for {asked[1] if asked else 0} and the engine uses {flags.world_size(view.args)} "
        "(tensor × pipeline × data parallel size): make them equal"
    )


def _differences(spec: StreamPairSpec) -> Iterator[Difference]:
    prefill, decode = roles(spec)
    for flag in flags.SAME_ON_BOTH_ROLES:
        left, right = prefill.args.get(flag), decode.args.get(flag)
        if left != right:
            yield Difference(flag, left, right, "decode" if flag in spec.decode.engine.args else "prefill")


def _parallel_flags(spec: StreamPairSpec) -> list[tuple[RoleView, str]]:
    return [(view, flag) for view in roles(spec) for flag in flags.PARALLEL_FLAGS]


def _adaptive_fits(view: RoleView) -> bool:
    size = flags.parallel_size(view.args, "data-parallel-size")
    return size is None or size == 1 or view.spec.speculation.policy not in ADAPTIVE_POLICIES


RULES: tuple[Rule[Any], ...] = (
    *(
        Rule[str](
            id="flag-not-ours",
            scope=scope,
            each=list,
            at=lambda flag: (flag,),
            holds=lambda flag: flags.owner(flag) is None,
            message=lambda flag: (
                f"{flags.owner(flag)} is set by StreamServe: remove it; {flags.OWNED_FLAGS[flags.owner(flag) or '']}"
            ),
        )
        for scope in ARGS_PATHS
    ),
    *(
        Rule[str](
            id="flag-spelling",
            scope=scope,
            each=list,
            at=lambda flag: (flag,),
            holds=lambda flag: flags.owner(flag) is not None or flags.spelling(flag) == flag,
            message=lambda flag: f"has one spelling here: write {flags.spelling(flag)}",
        )
        for scope in ARGS_PATHS
    ),
    Rule[Difference](
        id="same-on-both-roles",
        scope=("spec",),
        each=_differences,
        at=lambda found: (found.role, "engine", "args", found.flag),
        holds=lambda _: False,
        message=lambda found: (
            f"prefill has {found.prefill or 'the default'} and decode {found.decode or 'the default'}, so KV "
            "could not move between them: set it once, in spec.engine.args"
        ),
    ),
    Rule[tuple[RoleView, str]](
        id="parallel-size-is-a-number",
        scope=("spec",),
        each=_parallel_flags,
        at=lambda item: item[0].at(item[1]),
        holds=lambda item: flags.parallel_size(item[0].args, item[1]) is not None,
        message=lambda item: f"{item[0].args[item[1]]!r} is not a whole number from 1 to 9999: correct it",
    ),
    Rule[RoleView](
        id="gpus-match-parallel-size",
        scope=("spec",),
        each=roles,
        at=_gpu_place,
        holds=_gpus_match,
        message=_gpu_message,
    ),
    Rule[RoleView](
        id="adaptive-policy-needs-one-data-parallel-rank",
        scope=("spec",),
        each=roles,
        at=lambda view: view.at("data-parallel-size"),
        holds=_adaptive_fits,
        message=lambda view: (
            f"policy {view.spec.speculation.policy} would choose another depth on each data parallel rank, and "
            "the ranks step together: choose policy Fixed or Off, or add lanes in place of ranks"
        ),
    ),
)
