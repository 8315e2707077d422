"""Faults inside vLLM's processes, for tests only: a vLLM plugin (group `vllm.general_plugins`).

    switches = install(folder)                  # PYTHONPATH and a folder of switches, for the fleet's environment
    (folder / "corrupt-drafts").touch()         # on; unlink: off

corrupt-drafts    every draft becomes a random token: nothing is accepted, the text stays right
zero-draft-kv     a prefill engine forgets the drafter's keys and values before they can be pulled
dear-target       each pass of a decode engine's target takes DEAR_SECONDS longer, whatever the depth
broken-nixl       NIXL refuses every transfer that it is asked for
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

CORRUPT_DRAFTS = "corrupt-drafts"
ZERO_DRAFT_KV = "zero-draft-kv"
DEAR_TARGET = "dear-target"
BROKEN_NIXL = "broken-nixl"
DEAR_SECONDS = 0.08
_FOLDER = "STREAMSERVE_TEST_FAULTS"


def install(folder: Path) -> dict[str, str]:
    """Environment variables that make every vLLM process load the faults, switched by files in `folder`."""
    information = folder / "plugin" / "engine_faults-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-faults\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[vllm.general_plugins]\nengine_faults = engine_faults:register\n")
    path = os.pathsep.join([str(information.parent), str(Path(__file__).resolve().parent)])
    return {"PYTHONPATH": path, _FOLDER: str(folder)}


def register() -> None:
    """Called by vLLM in each of its processes, more than once."""
    from vllm.distributed.nixl_utils import NixlWrapper
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrap(Scheduler, "update_draft_token_ids", _corrupting)
    _wrap(GPUModelRunner, "propose_draft_token_ids", _forgetting)
    _wrap(GPUModelRunner, "_model_forward", _slowing)
    _wrap(NixlWrapper, "transfer", _refusing)


def _on(name: str) -> bool:
    return os.path.exists(os.path.join(os.environ[_FOLDER], name))


def _role(runner: Any) -> Any:
    return runner.vllm_config.additional_config.get("streamserve", {}).get("role")


def _wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, "engine_faults"):
        wrapped = wrapper(original)
        wrapped.engine_faults = True
        setattr(owner, name, wrapped)


def _corrupting(original: Any) -> Any:
    rng = Random(0)

    def update_draft_token_ids(self: Any, drafts: Any) -> None:
        if _on(CORRUPT_DRAFTS):
            size = self.vllm_config.model_config.get_vocab_size()
            drafts.draft_token_ids = [[rng.randrange(size) for _ in ids] for ids in drafts.draft_token_ids]
        original(self, drafts)

    return update_draft_token_ids


def _forgetting(original: Any) -> Any:
    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if _role(self) == "prefill" and _on(ZERO_DRAFT_KV):
            for name in self.drafter._draft_attn_layer_names:
                cache = self.compilation_config.static_forward_context[name].kv_cache
                for tensor in cache if isinstance(cache, (list, tuple)) else (cache,):
                    tensor.zero_()
        return result

    return propose_draft_token_ids


def _slowing(original: Any) -> Any:
    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _role(self) == "decode" and _on(DEAR_TARGET):
            time.sleep(DEAR_SECONDS)
        return original(self, *args, **kwargs)

    return _model_forward


def _refusing(original: Any) -> Any:
    def transfer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _on(BROKEN_NIXL):
            raise RuntimeError("NIXL_ERR_BACKEND (a fault planted by a test)")
        return original(self, *args, **kwargs)

    return transfer
