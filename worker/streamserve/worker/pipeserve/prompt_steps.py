"""How long steps took that compute prompts, told from when the calls of these prompts began and ended.

Those that end together were computed in one step. It began when the step before had ended, or, where the engine had
nothing to do, when the first of them came. So a queue of prompts tells as much as one prompt alone, and tells what
they take beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TOGETHER_FRACTION: Final = 0.25
"""The ends of one step's calls come in one batch from the engine, one task woken after the other: on a busy machine
within milliseconds, and long before another step could have ended. One that takes a quarter as long would count as a
part of the one before, tokens and time."""


class PromptSteps:
    """`on_step(tokens, seconds)` is called once it is known that a step has no further end."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self._on_step = on_step
        self._tokens = 0
        self._began = 0.0
        self._ended = self._before = float("-inf")
        self._unclear = False

    def ended(self, tokens: int, began: float, now: float) -> None:
        """A prompt of so many tokens, all of them computed."""
        if now - self._ended > TOGETHER_FRACTION * self._seconds:
            self.close()
        self._began = min(self._began, began) if self._tokens else began
        self._tokens += tokens
        self._ended = now

    def unclear(self, now: float) -> None:
        """One ended of which nobody knows what was computed of it and when: cancelled, failed, or cached in part. The
        step that ends now is not told of; where none does, the next."""
        if now - self._ended > TOGETHER_FRACTION * self._seconds:
            self.close()
        self._unclear = True

    def close(self) -> None:
        """The last step is over."""
        if not self._tokens:
            return
        if not self._unclear:
            self._on_step(self._tokens, self._seconds)
        self._before, self._tokens, self._unclear = self._ended, 0, False

    @property
    def _seconds(self) -> float:
        """Of the step that now ends."""
        return self._ended - max(self._began, self._before) if self._tokens else 0.0
