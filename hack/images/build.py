"""Builds the images: fills a folder of wheels for each, then hands it to an image builder with its Dockerfile.

    python hack/images/build.py                                 operator, router, worker-simulator
    python hack/images/build.py worker                          with vLLM for GPUs: about 8 GB of wheels
    python hack/images/build.py --wheels                        only fill dist/images/<image>/wheels
    python hack/images/build.py --base local/python-base:1      another base image, see base.sh
    python hack/images/build.py --archive                       also dist/images/<image>.tar, for `ctr images import`

Every wheel is checked against the hashes of requirements/image-*.txt; ours is built from this checkout. Nothing is
downloaded while an image is built. The builder is docker, podman or buildah, the first that works; without a daemon,
buildah as root (chroot isolation, a store of its own: store.sh) is enough. Nothing is pushed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from env import Refused, pip_command, tool_environment

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "dist" / "images"
STORE = ROOT / "hack" / "images" / "store.sh"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
LIMIT_SECONDS = 3600
BUILD_WHEEL = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Image:
    """`slim` says which of Python's public images is the default base."""

    name: str
    component: str
    tag: str
    arguments: tuple[str, ...] = ()
    slim: bool = True

    @property
    def requirements(self) -> Path:
        return ROOT / "requirements" / f"image-{self.name}.txt"

    @property
    def base(self) -> str:
        return f"python:{PYTHON}-slim-bookworm" if self.slim else f"python:{PYTHON}-bookworm"


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES = (
    Image("operator", "operator", f"streamserve/operator:{VERSION}"),
    Image("router", "router", f"streamserve/router:{VERSION}"),
    Image("worker-simulator", "worker", f"streamserve/worker:{VERSION}-simulator", ("EXTRAS=",)),
    Image("worker", "worker", f"streamserve/worker:{VERSION}", slim=False),
)
DEFAULT = ("operator", "router", "worker-simulator")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make images", description="Build the images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=" ".join(image.name for image in IMAGES))
    parser.add_argument("--wheels", action="store_true", help="only fill the folders of wheels")
    parser.add_argument("--base", metavar="IMAGE", help="the base image (default: Python's public ones)")
    parser.add_argument("--archive", action="store_true", help="write each image to dist/images/<image>.tar too")
    args = parser.parse_args(argv)
    if unknown := set(args.images) - {image.name for image in IMAGES}:
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    try:
        builder = None if args.wheels else find_builder()
        for image in IMAGES:
            if image.name in (args.images or DEFAULT):
                fill(image)
                if builder is not None:
                    build(image, builder, args.base or image.base, archive=args.archive)
    except Refused as reason:
        print(f"make images: {reason}", file=sys.stderr)
        return 1
    return 0


def fill(image: Image) -> None:
    """dist/images/<image>/wheels: ours and every other, each of its pinned version and hash."""
    wheels = OUT / image.name / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    call([sys.executable, "-c", BUILD_WHEEL, str(wheels)], f"building our wheel for {image.name}")
    fetch = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    wanted = wheels.parent / "requirements.txt"
    wanted.write_text(for_every_patch(image.requirements.read_text()))
    fetch += ["--require-hashes", "-r", str(wanted), "-d", str(wheels)]
    call([*pip_command(), *fetch], f"fetching the wheels of {image.name}")
    size = sum(path.stat().st_size for path in wheels.iterdir())
    say(f"{image.name}: {len(list(wheels.iterdir()))} wheels, {size / 1e6:.0f} MB")


def for_every_patch(requirements: str) -> str:
    """What any patch release of this Python needs: the base image's may be older than the one that fetches."""
    return re.sub(rf"python_full_version [<>=]+ '{re.escape(PYTHON)}\.\d+' and ", "", requirements)


def find_builder() -> list[str]:
    """The command that builds an image, up to `build`."""
    for program in ("docker", "podman"):
        if shutil.which(program) and succeeds([program, "info"]):
            return [program]
    if shutil.which("buildah"):
        own = subprocess.run([str(STORE)], check=True, capture_output=True, text=True, timeout=30).stdout.split()
        return own if os.geteuid() == 0 else ["buildah"]
    raise Refused("no image builder: start docker, or install podman or buildah (Debian: apt-get install buildah)")


def build(image: Image, builder: list[str], base: str, *, archive: bool) -> None:
    arguments = [part for given in (f"BASE={base}", *image.arguments) for part in ("--build-arg", given)]
    isolation = ["--isolation", "chroot"] if builder[0] == "buildah" else []
    dockerfile = ROOT / image.component / "Dockerfile"
    command = [*builder, "build", *isolation, *arguments, "-f", str(dockerfile), "-t", image.tag, str(OUT / image.name)]
    call(command, f"building {image.tag} on {base}")
    if archive:
        target = OUT / f"{image.name}.tar"
        target.unlink(missing_ok=True)
        save = (
            [*builder, "push", image.tag, f"docker-archive:{target}:{image.tag}"]
            if builder[0] == "buildah"
            else [*builder, "save", "-o", str(target), image.tag]
        )
        call(save, f"writing {target.name}")


def succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def call(command: Sequence[str], what: str) -> None:
    say(what)
    environment = tool_environment(os.environ)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, stdout=sys.stderr, stderr=sys.stderr, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"{what}: no end after {LIMIT_SECONDS} s") from None
    if done.returncode != 0:
        raise Refused(f"{what} failed; the lines above say why")


def say(line: str) -> None:
    print(f"make images: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
