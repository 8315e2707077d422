"""Who may use the router without a certificate: bearer tokens, one file for each client, as a Secret is mounted.

A file's name is the client's, its content the token. Files are looked at again at most once per second, so that a
client is let in or shut out without a restart; running streams go on. Tokens are kept and compared as digests only: how
long a look-up takes says nothing about how much of a guess was right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streamserve.contract.errors import Unauthenticated
from streamserve.runtime import logs

HEADER: Final = "authorization"
LOOK_SECONDS: Final = 1.0
MAX_CLIENTS: Final = 1_024
MAX_BYTES: Final = 4_096
MIN_CHARACTERS: Final = 16
_TOKEN: Final = re.compile(rf"[\x21-\x7e]{{{MIN_CHARACTERS},{MAX_BYTES}}}")
_log = logs.get(__name__)
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """The tokens of one look: digest → client. `refused`: a sentence for each file that holds no token."""

    clients: Mapping[bytes, str]
    refused: tuple[str, ...] = ()


class Tokens:
    """`clock` is monotonic, in seconds."""

    def __init__(self, directory: Path, *, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._stamp: Stamp | None = None
        self._looked_at = float("-inf")
        self._known = Known({})

    def client(self, header: str | None) -> str:
        """The name of the client whose token the `authorization` header holds. Raises Unauthenticated."""
        if not header:
            raise Unauthenticated(
                "who are you? Send the header `authorization: Bearer TOKEN`, or connect with a client certificate",
                reason="NO_TOKEN",
            )
        scheme, _, token = header.strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("write the header as `authorization: Bearer TOKEN`", reason="NO_TOKEN")
        found = self._current().get(_digest(token.strip()))
        if found is None:
            raise Unauthenticated("this token is not known, or not any more: ask for one", reason="UNKNOWN_TOKEN")
        return found

    def _current(self) -> Mapping[bytes, str]:
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look()
        return self._known.clients

    def _look(self) -> None:
        stamp = _stamp(self._directory)
        if stamp == self._stamp:
            return
        known = read(self._directory, [name for name, *_ in stamp])
        for sentence in known.refused:
            _log.warning("client tokens: %s", sentence)
        _log.info("client tokens: %d clients", len(known.clients))
        self._stamp, self._known = stamp, known


def read(directory: Path, names: list[str]) -> Known:
    """The tokens in these files. One that cannot be read is left out: whom it names is not known."""
    clients: dict[bytes, str] = {}
    refused = []
    for name in names[:MAX_CLIENTS]:
        try:
            with (directory / name).open("rb") as file:
                token = file.read(MAX_BYTES + 1).decode("latin-1").strip()
        except OSError as error:
            refused.append(f"{name} is left out: {error.strerror}")
            continue
        if not _TOKEN.fullmatch(token):
            refused.append(f"{name} is left out: a token has {MIN_CHARACTERS} to {MAX_BYTES} printable characters")
        elif _digest(token) in clients:
            refused.append(f"{name} is left out: {clients[_digest(token)]} has the same token")
        else:
            clients[_digest(token)] = name
    if len(names) > MAX_CLIENTS:
        refused.append(f"{len(names)} clients: only the first {MAX_CLIENTS} by name are let in")
    return Known(clients, tuple(refused))


def _stamp(directory: Path) -> Stamp:
    """What tells one state of the directory from another; nothing for one that cannot be read. Dotted names are the
    kubelet's own."""
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return ()
    found = []
    for path in paths:
        if path.name.startswith("."):
            continue
        with suppress(OSError):  # it has just gone
            stat = path.stat()
            found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
