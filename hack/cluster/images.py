"""The images that the test cluster runs, built without any registry: Debian's own packages under our wheels.

    streamserve/operator, /router, /worker:…-simulator     as `make images` builds them, on base.sh's base
    streamserve/redis:7, /prometheus:2                     Debian's, for tests
    streamserve/client:1                                   the router's, for its command line, and Debian's curl
    streamserve/pause:1                                    holds a pod's namespaces

Each is an archive in dist/images, built anew when what it is made of has changed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from build import PAUSE
from layout import PAUSE_IMAGE
from shell import call, say

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "dist" / "images"
BASE = "local/python-base:1"
OURS = ("operator", "router", "worker-simulator")
REDIS_IMAGE = "streamserve/redis:7"
PROMETHEUS_IMAGE = "streamserve/prometheus:2"
CLIENT_IMAGE = "streamserve/client:1"
BUILD_SECONDS = 1800.0


def archives() -> list[Path]:
    """All of them, built where absent or outdated."""
    OUT.mkdir(parents=True, exist_ok=True)
    pause = _kept("pause", [PAUSE.binary()], _pause)
    base = _kept("base", [ROOT / "hack" / "images" / "base.sh"], _base)
    made_of = [base.with_suffix(".key"), *_sources()]
    ours = [_kept(name, made_of, _ours) for name in OURS]
    redis = _kept("redis", [base.with_suffix(".key"), ROOT / "hack" / "redis.sh"], _redis)
    prometheus = _kept("prometheus", [base.with_suffix(".key"), ROOT / "hack" / "promtool.sh"], _prometheus)
    router = OUT / "router.key"
    client = _kept("client", [base.with_suffix(".key"), router, ROOT / "hack" / "curl.sh"], _client)
    return [pause, redis, prometheus, *ours, client]


def _kept(name: str, made_of: Iterable[Path], build: Callable[[str], None]) -> Path:
    digest = hashlib.sha256()
    for path in made_of:
        digest.update(str(path.name).encode() + path.read_bytes())
    archive, key = OUT / f"{name}.tar", OUT / f"{name}.key"
    if not (archive.exists() and key.exists() and key.read_text() == digest.hexdigest()):
        key.unlink(missing_ok=True)
        say(f"building the image {name}")
        build(name)
        key.write_text(digest.hexdigest())
    return archive


def _sources() -> list[Path]:
    """What our wheels and Dockerfiles are made of."""
    folders = ("operator", "router", "worker", "proto", "cli")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pyi")]
    files += [ROOT / "pyproject.toml", *(ROOT / "requirements").glob("image-*.txt")]
    return sorted([*files, *ROOT.glob("*/Dockerfile")])


def _base(name: str) -> None:
    call("sh", str(ROOT / "hack" / "images" / "base.sh"), seconds=BUILD_SECONDS)
    (OUT / f"{name}.tar").touch()


def _ours(name: str) -> None:
    script = str(ROOT / "hack" / "images" / "build.py")
    call(sys.executable, script, name, "--base", BASE, "--archive", seconds=BUILD_SECONDS)


def _pause(name: str) -> None:
    binary = PAUSE.build()
    container = _buildah("from", "scratch")
    _buildah("copy", "--quiet", container, str(binary), "/pause")
    _buildah("config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)
    _finish(container, PAUSE_IMAGE, name)


def _redis(name: str) -> None:
    program = Path(call("sh", str(ROOT / "hack" / "redis.sh"), seconds=600).strip())
    unpacked = program.parent / "unpacked"
    container = _buildah("from", BASE)
    for part in ("usr/bin", "usr/lib"):
        _buildah("copy", "--quiet", container, str(unpacked / part), f"/{part}")
    _buildah("config", "--user", "65532:65532", "--cmd", '["redis-server"]', container)
    _finish(container, REDIS_IMAGE, name)


def _prometheus(name: str) -> None:
    tool = Path(call("sh", str(ROOT / "hack" / "promtool.sh"), seconds=600).strip())
    container = _buildah("from", BASE)
    _buildah("copy", "--quiet", container, str(tool.with_name("prometheus")), "/usr/bin/prometheus")
    _buildah("config", "--user", "65532:65532", "--cmd", '["prometheus"]', container)
    _finish(container, PROMETHEUS_IMAGE, name)


def _client(name: str) -> None:
    """On the archive of the router's image: the store of images may be another checkout's."""
    unpacked = Path(call("sh", str(ROOT / "hack" / "curl.sh"), seconds=600).strip())
    container = _buildah("from", f"docker-archive:{OUT / 'router.tar'}")
    for part in ("usr/bin", "usr/lib"):
        _buildah("copy", "--quiet", container, str(unpacked / part), f"/{part}")
    _finish(container, CLIENT_IMAGE, name)


def _finish(container: str, image: str, name: str) -> None:
    archive = OUT / f"{name}.tar"
    archive.unlink(missing_ok=True)
    _buildah("commit", "--quiet", container, image)
    _buildah("push", "--quiet", image, f"docker-archive:{archive}:{image}")
    _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    buildah = call(str(ROOT / "hack" / "images" / "store.sh")).split()
    return call(*buildah, *arguments, seconds=BUILD_SECONDS).strip()
