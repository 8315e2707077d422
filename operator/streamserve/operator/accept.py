"""Whether a StreamPair from the API server is one that this operator can act on, before it acts at all.

The CRD refuses most of it at admission with the same words. What comes here all the same was written under an older
CRD or an older operator: it is refused whole, with every reason, and what runs stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from streamserve.contract import hot
from streamserve.contract.streampair import StreamPair, releases, rules
from streamserve.contract.streampair.fields import render
from streamserve.contract.streampair.problems import clean_path, explain

_METADATA: Final = ("name", "namespace", "uid", "generation")


@dataclass(frozen=True, slots=True)
class Refused:
    """Each problem is `path: what is wrong and what to do`."""

    problems: tuple[str, ...]

    @property
    def message(self) -> str:
        return "; ".join(self.problems)


def accept(body: Mapping[str, Any]) -> StreamPair | Refused:
    """The typed pair, or everything that keeps us from acting on it. Never raises."""
    metadata = {name: value for name, value in body.get("metadata", {}).items() if name in _METADATA}
    document = {"metadata": metadata, **{name: body[name] for name in ("apiVersion", "kind", "spec") if name in body}}
    try:
        pair = StreamPair.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        return Refused(
            tuple(f"{render(clean_path(each['loc']))}: {explain(each)[0]}" for each in error.errors(include_url=False))
        )
    problems = [str(finding) for finding in (*releases.check(pair), *rules.check(pair))]
    if not problems:
        try:
            hot.runtime_config(pair, pair.metadata.uid or "none", pair.metadata.generation)
        except hot.HotError as error:
            problems.append(str(error))
    return Refused(tuple(problems)) if problems else pair
