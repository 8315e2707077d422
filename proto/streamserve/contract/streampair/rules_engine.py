"""Rules about vLLM's flags and the GPUs they need, for the shared engine and for both roles."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from streamserve.contract.streampair import flags
from streamserve.contract.streampair.enums import ADAPTIVE_POLICIES
from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.resource import StreamPairSpec
from streamserve.contract.streampair.rule import Cel, Entry, Rule, literal, never
from streamserve.contract.streampair.rules_speculation import ADAPTIVE
from streamserve.contract.streampair.workers import Role

ARGS_PATHS: tuple[Path, ...] = (
    ("spec", "engine", "args"),
    ("spec", "prefill", "engine", "args"),
    ("spec", "decode", "engine", "args"),
)
DATA_PARALLEL = "data-parallel-size"


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


class Gpus(NamedTuple):
    """GPUs of one kind that each pod of a role asks for, and how many its engine uses."""

    at: Path
    asked: str
    used: int | None


def roles(spec: StreamPairSpec) -> tuple[RoleView, RoleView]:
    """Prefill and decode, each with its flags. The rules look at values, so no switch is taken out here."""
    shared = spec.engine.args
    return (
        RoleView("prefill", spec.prefill, shared | spec.prefill.engine.args, spec),
        RoleView("decode", spec.decode, shared | spec.decode.engine.args, spec),
    )


def _gpus(spec: StreamPairSpec) -> Iterator[Gpus]:
    for view in roles(spec):
        resources = view.role.resources
        for kind, quantities in (("limits", resources.limits), ("requests", resources.requests)):
            for name, count in quantities.items():
                if name.endswith("/gpu"):
                    yield Gpus((view.name, "resources", kind, name), str(count), flags.world_size(view.args))


def _differences(spec: StreamPairSpec) -> Iterator[Entry]:
    prefill, decode = roles(spec)
    for flag in flags.SAME_ON_BOTH_ROLES:
        if prefill.args.get(flag) != decode.args.get(flag):
            role = "decode" if flag in spec.decode.engine.args else "prefill"
            yield Entry((role, "engine", "args", flag), flag)


def _parallel_sizes(args: dict[str, str]) -> list[Entry]:
    return [Entry((flag,), args) for flag in flags.PARALLEL_FLAGS if flag in args]


def _undoes_another(flag: str, args: dict[str, str]) -> bool:
    return flag.startswith("no-") and flags.opposite(flag) in args


def one_rank(view: RoleView) -> bool:
    """Whether this role has one data parallel rank, or a count that is no number (another rule's finding)."""
    return flags.parallel_size(view.args, DATA_PARALLEL) in (None, 1)


_SHARED, _PREFILL, _DECODE = (f"self.{'.'.join(map(str, path[1:]))}" for path in ARGS_PATHS)
_SIZE = "^0*[1-9][0-9]*$"
_FREE, _SHORT = literal(sorted(flags.FREE_DESPITE_ABBREVIATION)), literal(flags.SHORT_FLAGS)
_OWNED, _OWNED_WHY = literal(list(flags.OWNED_FLAGS)), literal([[*row] for row in flags.OWNED_FLAGS.items()])
_MEANT = "o.startsWith(h) || h == 'no-' + o"
"""Flag `o` is set, abbreviated or negated by the head `h` of a flag: `flags.owner` in CEL."""

_UNDOES_ANOTHER = "flag.startsWith('no-') && flag.substring(3) in self"


def _dot(flag: str) -> str:
    """Where a flag's JSON keys begin: at the first dot, or at its end."""
    return f"({flag}.indexOf('.') < 0 ? {flag}.size() : {flag}.indexOf('.'))"


def _heads(flag: str) -> str:
    """A list of one: the flag without its JSON keys, long and with dashes, as `flags.spelling` writes it.

    `substring` and the two lookups rather than `split` and optionals: their sizes are known, which the API server
    wants of everything that a rule looks at.
    """
    head = f"[{flag}.substring(0, {_dot(flag)})]"
    return f"{head}.map(h, h in {_SHORT} ? {_SHORT}[h] : h).map(h, h.replace('_', '-'))"


def _owned(flag: str) -> str:
    return (
        f"{_heads(flag)}.map(h, h.lowerAscii()).exists(h, h != '' && !(h in {_FREE}) && {_OWNED}.exists(o, {_MEANT}))"
    )


def _owner(flag: str) -> str:
    """The owned flag that `flag` is, and why it is owned."""
    rows = f"{_OWNED_WHY}.filter(row, [row[0]].exists(o, {_MEANT}))"
    return f"{_heads(flag)}.map(h, h.lowerAscii()).map(h, {rows}[0])[0]"


def _misspelt(flag: str) -> str:
    head = f"{flag}.substring(0, {_dot(flag)})"
    return f"({head} in {_SHORT} || {head}.contains('_')) && !{_owned(flag)}"


def _is_size(args: str, flag: str) -> str:
    return f"({args}[{flag}].size() <= 4 && {args}[{flag}].matches({literal(_SIZE)}))"


def _effective(role: str, flag: str) -> str:
    name, own = literal(flag), f"self.{role}.engine.args"
    return f"({name} in {own} ? {own}[{name}] : {name} in {_SHARED} ? {_SHARED}[{name}] : '1')"


def _gpu_rule(role: str, kind: str) -> Cel:
    sizes = [_effective(role, flag) for flag in flags.PARALLEL_FLAGS]
    sound = " && ".join(f"{size}.size() <= 4 && {size}.matches({literal(_SIZE)})" for size in sizes)
    used = " * ".join(f"int({size})" for size in sizes)
    asked = f"self.{role}.resources.{kind}"
    differs = f"name.endsWith('/gpu') && !({asked}[name] == {used} || {asked}[name] == string({used}))"
    return Cel(
        f"!({sound}) || !{asked}.exists(name, {differs})",
        {"asked": f"{asked}[found]", "used": used},
        found=f"{asked}.filter(name, {differs})[0]",
        at=(role, "resources", kind),
    )


def _decode_differs(flag: str) -> str:
    shared = f"!({flag} in {_SHARED}) || {_SHARED}[{flag}] != {_DECODE}[{flag}]"
    prefill = f"{_PREFILL}[{flag}] != {_DECODE}[{flag}]"
    return f"{flag} in {_DECODE} && ({flag} in {_PREFILL} ? {prefill} : {shared})"


def _prefill_differs(flag: str) -> str:
    shared = f"!({flag} in {_SHARED}) || {_SHARED}[{flag}] != {_PREFILL}[{flag}]"
    return f"{flag} in {_PREFILL} && !({flag} in {_DECODE}) && ({shared})"


def _ranks_rules(condition: str, values: dict[str, str]) -> tuple[Cel, ...]:
    """One rule for each place where data parallel ranks can be written: it fails where they count and are several."""
    name = literal(DATA_PARALLEL)

    def several(args: str) -> str:
        return f"{name} in {args} && {_is_size(args, name)} && int({args}[{name}]) > 1"

    overridden = f"{name} in self.prefill.engine.args && {name} in self.decode.engine.args"
    shared = f"{several('self.engine.args')} && !({overridden})"
    places: list[tuple[str, Path]] = [(shared, ("engine", "args"))]
    places += [(several(f"self.{role}.engine.args"), (role, "engine", "args")) for role in ("prefill", "decode")]
    return tuple(Cel(f"!({condition}{failing})", values, at=at) for failing, at in places)


ONE_RANK = _ranks_rules("", {})

RULES: tuple[Rule[Any], ...] = (
    *(
        Rule[str](
            id="flag-not-ours",
            scope=scope,
            each=list,
            at=lambda flag: (flag,),
            holds=lambda flag: flags.owner(flag) is None,
            message="{owner} is set by StreamServe: remove it; {why}",
            values=lambda flag: {
                "owner": flags.owner(flag),
                "why": flags.OWNED_FLAGS[flags.owner(flag) or ""],
            },
            cel=(
                Cel(
                    f"!self.exists(flag, {_owned('flag')})",
                    {"owner": "found[0]", "why": "found[1]"},
                    found=_owner(f"self.filter(flag, {_owned('flag')})[0]"),
                ),
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
            message="has one spelling here: write {spelling}",
            values=lambda flag: {"spelling": flags.spelling(flag)},
            cel=(
                Cel(
                    f"!self.exists(flag, {_misspelt('flag')})",
                    {"spelling": f"'%s%s'.format([{_heads('found')}[0], found.substring({_dot('found')})])"},
                    found=f"self.filter(flag, {_misspelt('flag')})[0]",
                ),
            ),
        )
        for scope in ARGS_PATHS
    ),
    *(
        Rule[str](
            id="switch-one-way",
            scope=scope,
            each=lambda args: [flag for flag in args if _undoes_another(flag, args)],
            at=lambda flag: (flag,),
            holds=never,
            message="undoes {switch}, which is given here as well: remove one of the two",
            values=lambda flag: {"switch": flags.opposite(flag)},
            cel=(
                Cel(
                    f"!self.exists(flag, {_UNDOES_ANOTHER})",
                    {"switch": "found.substring(3)"},
                    found=f"self.filter(flag, {_UNDOES_ANOTHER})[0]",
                ),
            ),
        )
        for scope in ARGS_PATHS
    ),
    Rule[Entry](
        id="same-on-both-roles",
        scope=("spec",),
        each=_differences,
        at=lambda entry: entry.at,
        holds=never,
        message=(
            "prefill and decode differ in {flag}, so KV could not move between them: set it once, in spec.engine.args"
        ),
        values=lambda entry: {"flag": entry.value},
        cel=tuple(
            Cel(
                f"!{literal(flags.SAME_ON_BOTH_ROLES)}.exists(f, {differs})",
                {"flag": "found"},
                found=f"{literal(flags.SAME_ON_BOTH_ROLES)}.filter(f, {differs})[0]",
                at=(role, "engine", "args"),
            )
            for role, differs in (("decode", _decode_differs("f")), ("prefill", _prefill_differs("f")))
        ),
    ),
    *(
        Rule[Entry](
            id="parallel-size-is-a-number",
            scope=scope,
            each=_parallel_sizes,
            at=lambda entry: entry.at,
            holds=lambda entry: flags.parallel_size(entry.value, str(entry.at[0])) is not None,
            message="is not a whole number from 1 to 9999: correct it",
            cel=(Cel(f"{literal(flags.PARALLEL_FLAGS)}.all(f, !(f in self) || {_is_size('self', 'f')})"),),
        )
        for scope in ARGS_PATHS
    ),
    Rule[Gpus](
        id="gpus-match-parallel-size",
        scope=("spec",),
        each=_gpus,
        at=lambda gpus: gpus.at,
        holds=lambda gpus: gpus.used is None or gpus.asked == str(gpus.used),
        message=(
            "asks for {asked} and the engine uses {used} (tensor × pipeline × data parallel size): make them equal"
        ),
        values=lambda gpus: {"asked": gpus.asked, "used": gpus.used},
        cel=tuple(_gpu_rule(role, kind) for role in ("prefill", "decode") for kind in ("limits", "requests")),
    ),
    Rule[RoleView](
        id="adaptive-policy-needs-one-data-parallel-rank",
        scope=("spec",),
        each=roles,
        at=lambda view: view.at(DATA_PARALLEL),
        holds=lambda view: one_rank(view) or view.spec.speculation.policy not in ADAPTIVE_POLICIES,
        message=(
            "policy {policy} would choose another depth on each data parallel rank, and the ranks step together: "
            "choose policy Fixed or Off, or add lanes in place of ranks"
        ),
        values=lambda view: {"policy": view.spec.speculation.policy},
        cel=_ranks_rules(f"self.speculation.policy in {ADAPTIVE} && ", {"policy": "self.speculation.policy"}),
    ),
)
