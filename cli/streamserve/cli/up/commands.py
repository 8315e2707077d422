"""The command lines and environments of what `up` starts. No secret is in an argument: Redis comes by environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from streamserve.contract.lanes import Slot
from streamserve.contract.launch import engine_arguments, lane_name, worker_name
from streamserve.contract.streampair import StreamPair

NAMESPACE: Final = "local"
REDIS_VARIABLE: Final = "STREAMSERVE_REDIS_URL"

# How long requests may go on after SIGTERM. Before a worker is stopped it was drained, or the router has ended.
ROUTER_DRAIN_SECONDS: Final = 5
WORKER_DRAIN_SECONDS: Final = 2

# What a vLLM engine needs to share a machine without a GPU with others; a variable that is already set wins.
CPU_ENGINE: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "UCX_TLS": "tcp,self,sm",
}
QUIET_ENGINE: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process: how to start it and where it says that it is up."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    ready_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What all processes of one `up` share."""

    pair: str
    uid: str
    run_dir: Path
    redis_url: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    cpu_engines: bool = True

    @property
    def config_file(self) -> Path:
        return self.run_dir / "config" / "config.json"

    @property
    def fleet_file(self) -> Path:
        return self.run_dir / "fleet" / "fleet.json"

    @property
    def temporary(self) -> Path:
        """Where our children and theirs put what is temporary, so that it goes even when they are killed."""
        return self.run_dir / "tmp"

    def ready_file(self, name: str) -> Path:
        return self.run_dir / "ready" / f"{name}.json"

    def log_file(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"


def worker(site: Site, pair: StreamPair, lane: int, slot: Slot, revision: str) -> Command:
    """A worker of this spec. It chooses its ports anew at every start; the ready file says which."""
    spec, name = pair.spec, worker_name(lane, slot)
    draft = spec.speculation.draft
    argv = [
        *engine_arguments(spec, slot.role, model=spec.model.name, draft=draft.name if draft else None),
        *("--id", name, "--lane", lane_name(lane), "--revision", revision),
        *_identity(site),
        *("--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--nixl", "127.0.0.1:0"),
        *("--drain-seconds", str(WORKER_DRAIN_SECONDS)),
    ]
    return _command(site, name, "streamserve.worker", argv, engine_environment(site, pair))


def engine_environment(site: Site, pair: StreamPair) -> dict[str, str]:
    """Defaults under what the caller's own environment says."""
    if pair.spec.engine.kind.value != "Vllm":
        return {}
    wanted = dict(QUIET_ENGINE)
    if site.cpu_engines:
        wanted |= CPU_ENGINE
    draft = pair.spec.speculation.draft
    if Path(pair.spec.model.name).is_absolute() and (draft is None or Path(draft.name).is_absolute()):
        wanted |= OFFLINE
    return {name: value for name, value in wanted.items() if name not in site.environment}


def router(site: Site, grpc_address: str, http_address: str) -> Command:
    argv = [
        *_identity(site),
        *("--grpc", grpc_address, "--http", http_address, "--metrics", "127.0.0.1:0"),
        *("--fleet", str(site.fleet_file)),
        *("--drain-seconds", str(ROUTER_DRAIN_SECONDS)),
    ]
    return _command(site, "router", "streamserve.router", argv, {})


def redis(executable: str, config_file: Path, parent: int) -> Command:
    """redis-server knows no --die-with-parent: the guard gives it one. The password is in its configuration file."""
    argv = (sys.executable, "-m", "streamserve.cli.up.guard", "--parent", str(parent), "--")
    return Command(name="redis", argv=(*argv, executable, str(config_file)), ready_file=None)


def reaper() -> tuple[str, ...]:
    return (sys.executable, "-m", "streamserve.cli.up.reaper")


def _identity(site: Site) -> tuple[str, ...]:
    return ("--namespace", NAMESPACE, "--pair", site.pair, "--pair-uid", site.uid)


def _command(site: Site, name: str, module: str, argv: list[str], environment: dict[str, str]) -> Command:
    ready = site.ready_file(name)
    shared = ("--config", str(site.config_file), "--ready-file", str(ready), "--die-with-parent")
    return Command(
        name=name,
        argv=(sys.executable, "-m", module, *argv, *shared),
        environment={REDIS_VARIABLE: site.redis_url, "TMPDIR": str(site.temporary), **environment},
        ready_file=ready,
    )
