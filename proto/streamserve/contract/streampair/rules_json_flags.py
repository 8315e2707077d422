"""Rules about vLLM's JSON flags: given whole, as `compilation-config`, or by keys, as `compilation-config.mode`.

vLLM's parser lets the keys win and drops the rest, so the worker refuses both together. A role's engine starts with
`spec.engine.args` and its own flags over them, so the two may stand in different places: a role that writes a key of
what all roles are given whole replaces nothing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.resource import StreamPairSpec
from streamserve.contract.streampair.rule import Cel, Rule, never


class GivenTwice(NamedTuple):
    """A flag that is given whole, a key of it that is given as well, and the later of the two places."""

    at: Path
    flag: str
    key: str


def _given_twice(spec: StreamPairSpec) -> Iterator[GivenTwice]:
    shared = spec.engine.args
    for key in _keys_of(shared, shared):
        yield GivenTwice(("engine", "args", key), _whole(key), key)
    for name, role in (("prefill", spec.prefill), ("decode", spec.decode)):
        own = role.engine.args
        for key in _keys_of({**shared, **own}, own):
            yield GivenTwice((name, "engine", "args", key), _whole(key), key)
        for key in _keys_of(own, shared):
            yield GivenTwice((name, "engine", "args", _whole(key)), _whole(key), key)


def _keys_of(whole: dict[str, str], args: dict[str, str]) -> list[str]:
    """The keys in `args` of flags that `whole` has in one piece."""
    return [key for key in args if "." in key and _whole(key) in whole]


def _whole(key: str) -> str:
    return key.partition(".")[0]


_SHARED = "self.engine.args"


def _is_key_of(*places: str) -> str:
    """Whether k is a key of a flag that stands whole in one of the places."""
    found = " || ".join(f"k.substring(0, k.indexOf('.')) in {place}" for place in places)
    return f"k.contains('.') && ({found})"


def _cel(at: Path, *rows: tuple[str, str]) -> Cel:
    """None of the rows (flags, condition of k) finds one; the first that is found is shown."""
    found = " + ".join(f"{args}.filter(k, {condition})" for args, condition in rows)
    return Cel(
        " && ".join(f"!{args}.exists(k, {condition})" for args, condition in rows),
        {"flag": "found.substring(0, found.indexOf('.'))", "key": "found"},
        found=f"({found})[0]",
        at=at,
    )


def _cel_of_role(role: str) -> Cel:
    own = f"self.{role}.engine.args"
    return _cel((role, "engine", "args"), (own, _is_key_of(own, _SHARED)), (_SHARED, _is_key_of(own)))


RULES: tuple[Rule[Any], ...] = (
    Rule[GivenTwice](
        id="json-flag-whole-or-by-keys",
        scope=("spec",),
        each=_given_twice,
        at=lambda given: given.at,
        holds=never,
        message="{flag} is given whole, and {key} as well, here or in spec.engine.args: write it one way",
        values=lambda given: {"flag": given.flag, "key": given.key},
        cel=(
            _cel(("engine", "args"), (_SHARED, _is_key_of(_SHARED))),
            _cel_of_role("prefill"),
            _cel_of_role("decode"),
        ),
    ),
)
