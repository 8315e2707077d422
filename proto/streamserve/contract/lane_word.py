"""What one router says of its lanes: key `router/<id>/lanes`, written each second and whenever a lane changes.

The operator opens and closes the gates of pods by it. A router that has just started knows of no lane yet, and then
waits for the canary transfer of each: until it is `settled`, only what it says of a lane that it has judged (READY or
FENCED) is a word, and its silence about a lane is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from streamserve.contract import json_form

VERSION: Final = 1
MAX_BYTES: Final = 4_194_304
READY: Final = "READY"
FENCED: Final = "FENCED"
_UNKNOWN: Final = "no router knows the lane"


class LaneWordError(ValueError):
    """The bytes are no word that this reader can use. The message says which field and why."""


class _Frozen(BaseModel):
    # Operator and routers are of different releases during an upgrade: a later router may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class LaneReport(_Frozen):
    """A lane's state, why it is so, and the revision of the workers that are meant (empty: any)."""

    state: str
    reason: str = ""
    revision: str = ""


class LaneWord(_Frozen):
    """Of one router, or of many together. `settled` is False while all who speak have just started."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    settled: bool = True
    lanes: Mapping[str, LaneReport] = Field(default_factory=dict)

    def of(self, lane: str) -> LaneReport | None:
        """None while nobody can tell."""
        report = self.lanes.get(lane)
        if self.settled:
            return report or LaneReport(state="", reason=_UNKNOWN)
        return report if report is not None and report.state in (READY, FENCED) else None


def encode(word: LaneWord) -> bytes:
    return word.model_dump_json().encode()


def decode(data: bytes | str) -> LaneWord:
    """The word in `data`. Raises LaneWordError with a readable reason, and nothing else."""
    word = json_form.read(LaneWord, data, max_bytes=MAX_BYTES, what="a router's word", error=LaneWordError)
    # What has no such fields is not a word that says little: it may be another form of it.
    if missing := {"version", "settled", "lanes"} - word.model_fields_set:
        raise LaneWordError(f"{min(missing)}: it is not there")
    return word
