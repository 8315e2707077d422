"""What a process logs, as it logs it in a pod."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from streamserve.runtime import logs

Lines = Callable[[], list[dict[str, Any]]]


@contextlib.contextmanager
def logged_by(component: str) -> Iterator[Lines]:
    """The lines so far, each as its JSON says."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    with contextlib.redirect_stderr(written):
        logs.configure(component, as_json=True)
    try:
        yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
