"""Test hooks of the simulator: what can be made to go wrong, at start and while it runs.

Engine arguments set them at start; the JSON file named by `simulator-control` changes them while it runs (looked at
ten times a second; remove the file to end every fault). No real engine has any of this.

    acceptance         list of rates, one for each draft position, instead of the calibration's
    step_seconds       seconds of every step, instead of the calibration's
    slowdown           factor on every step and transfer
    stall              true: the step loop stands still, as a frozen engine does
    fail_transfers     true: every pull of KV fails
    die                text: the engine dies, with this reason
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamserve.runtime import logs

_log = logs.get(__name__)
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Faults(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    acceptance: tuple[Rate, ...] | None = None
    step_seconds: Annotated[float, Field(gt=0, le=60)] | None = None
    slowdown: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    stall: bool = False
    fail_transfers: bool = False
    die: str = ""


class ControlFile:
    """The faults in force: those of the start, overlaid with what the file says now."""

    def __init__(self, start: Faults, path: Path | None) -> None:
        self._start = start
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self.faults = start

    @property
    def watched(self) -> bool:
        return self._path is not None

    def poll(self) -> Faults:
        """Read the file again if it changed. One that cannot be read changes nothing."""
        if self._path is None:
            return self.faults
        try:
            status = self._path.stat()
        except OSError:
            self._stamp, self.faults = None, self._start
            return self.faults
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                given = Faults.model_validate_json(self._path.read_bytes()).model_dump(exclude_unset=True)
                self.faults = self._start.model_copy(update=given)
            except (OSError, ValidationError) as error:
                _log.warning("simulator control file ignored: %s", error)
        return self.faults
