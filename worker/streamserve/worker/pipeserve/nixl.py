"""Keeps NIXL's progress thread from burning a core: `--worker-extension-cls streamserve.worker.pipeserve.nixl.Worker`.

NIXL's Python API starts its agent with `pthrDelay = 0`: the progress thread polls without a pause, so every engine
costs a core while it does nothing. With a pause between polls, transfers on a machine whose cores are shared even get
faster (FACTS: 8-13 ms to 0.4-1.5 ms for 2.4 MB at 1000 µs).

The delay is not a parameter of the API, so the configuration class that the API instantiates is wrapped. vLLM imports
the extension class in each worker process before it makes the connector, which is the process that makes the agent;
the same flag therefore tames a plain `vllm` server too.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from types import ModuleType
from typing import Any

from streamserve.worker.pipeserve import cpu_sampling, gloo, lifeline, shm_wait

DELAY_ENV = "STREAMSERVE_NIXL_THREAD_DELAY_US"
DEFAULT_DELAY_MICROSECONDS = 3000


def thread_delay_microseconds() -> int:
    """The pause between two polls of NIXL's progress thread; 0 is NIXL's own busy polling."""
    text = os.environ.get(DELAY_ENV, str(DEFAULT_DELAY_MICROSECONDS))
    if not text.isdecimal() or int(text) > 1_000_000:
        raise ValueError(f"{DELAY_ENV} is {text!r}; give microseconds from 0 to 1000000")
    return int(text)


def tame(delay_microseconds: int) -> bool:
    """Make every NIXL agent of this process poll that seldom; False when NIXL is not installed."""
    # vLLM sets this before it imports NIXL, which we now do first.
    os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")
    try:
        api: Any = importlib.import_module("nixl._api")
    except ImportError:
        return False
    bindings: Any = api.nixlBind
    if not isinstance(bindings, _Bindings):
        api.nixlBind = _Bindings(bindings, delay_microseconds)
    return True


class _Bindings(ModuleType):
    """NIXL's bindings, except that an agent's configuration keeps our delay."""

    def __init__(self, bindings: Any, delay_microseconds: int) -> None:
        super().__init__("nixl._bindings")
        self._bindings = bindings

        class AgentConfig(bindings.nixlAgentConfig):
            @property
            def pthrDelay(self) -> int:
                return int(super().pthrDelay)

            @pthrDelay.setter
            def pthrDelay(self, _: int) -> None:
                bindings.nixlAgentConfig.pthrDelay.__set__(self, delay_microseconds)

        self.nixlAgentConfig = AgentConfig

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)


class Worker:
    """Added to vLLM's worker class; being imported in the worker's process is all it is for."""


if multiprocessing.parent_process() is not None:
    lifeline.hold_to_parent()
    tame(thread_delay_microseconds())
    gloo.share_devices()
    cpu_sampling.repair()
    shm_wait.sleep_at_once()
