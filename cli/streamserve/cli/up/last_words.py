"""What a child's log says of its end."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 65_536
_WORDS: Final = 300
_POINTS_UP: Final = "See root cause above"
_EXCEPTION: Final = re.compile(r"(?:(?<=\] )|^)[\w.]*(?:Error|Exception): .+")


def words_of(log: Path) -> str:
    """The last line that says something, of a structured line its message; with the cause, where it points up to one.

    vLLM's "See root cause above" is of the process that started the engine core; the core wrote the cause before it.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    if not lines:
        return ""
    last = _message(lines[-1])
    if _POINTS_UP not in last:
        return last
    causes = (cause for line in reversed(lines[:-1]) if (cause := _cause(line)) and _POINTS_UP not in cause)
    return f"{last[:_WORDS]} (cause: {cause})" if (cause := next(causes, "")) else last


def _message(line: str) -> str:
    try:
        record = json.loads(line)
        text = str(record["message"]) if isinstance(record, dict) else line
    except (ValueError, KeyError):
        text = line
    return text.strip()[:_WORDS]


def _cause(line: str) -> str:
    """What a line says went wrong: a critical record's message, or an exception as a traceback ends with it."""
    try:
        record = json.loads(line)
        if isinstance(record, dict) and str(record.get("level")).lower() == "critical":
            return _message(line)
    except ValueError:
        pass
    found = _EXCEPTION.search(line)
    return found[0][:_WORDS] if found else ""
