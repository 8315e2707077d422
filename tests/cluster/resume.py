"""What a story that was interrupted has behind it, so that the next `make test-cluster` goes on where it stopped.

Noted in a file as steps pass: of one commit on one cluster. It goes on with the first step that has not passed, also
where later ones have, for each builds on those before it. A story that came to its end leaves no notes, whatever
failed: it has uninstalled everything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Notes:
    """`of` is what must be the same: the commit, the cluster. Empty: nothing is noted."""

    file: Path
    of: Sequence[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return
        if self.of and found.get("of") == list(self.of):
            self.seconds = found["seconds"]

    def behind(self, story: Sequence[str]) -> Sequence[str]:
        """Its first steps, those that have passed one after another."""
        left = next((at for at, step in enumerate(story) if step not in self.seconds), len(story))
        return story[:left]

    def passed(self, step: str, seconds: float) -> None:
        if self.of:
            self.seconds[step] = seconds
            fresh = self.file.with_suffix(".new")
            fresh.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps({"of": list(self.of), "seconds": self.seconds}))
            fresh.rename(self.file)

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)
