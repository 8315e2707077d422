"""A file of ours that others read. A write that the machine refuses (a full disk, too many open files) may pass: it is
said once, whoever keeps the file writes it again, and nothing stops for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from streamserve.runtime.process import write_atomic


class KeptFile:
    """Both writes tell whether the file holds `data` now; one that it holds already is not written."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._held: bytes | None = None
        self._refused = False

    def write(self, data: bytes) -> bool:
        return data == self._held or self._settle(data, self._try(data))

    async def write_in_thread(self, data: bytes) -> bool:
        if data == self._held:
            return True
        try:
            refusal = await asyncio.to_thread(self._try, data)
        except RuntimeError as error:  # the machine has no thread left
            refusal = str(error)
        return self._settle(data, refusal)

    def _try(self, data: bytes) -> str:
        try:
            write_atomic(self._path, data)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _settle(self, data: bytes, refusal: str) -> bool:
        if refusal:
            if not self._refused:
                self._say(f"cannot write {self._path}: {refusal}; mend that, it is tried again until it works")
        else:
            self._held = data
            if self._refused:
                self._say(f"{self._path} is written again")
        self._refused = bool(refusal)
        return not refusal
