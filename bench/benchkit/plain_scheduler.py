"""vLLM's own scheduler, in a server whose readers of steps sleep as those of our workers do.

For the arms (b): `--scheduler-cls benchkit.plain_scheduler.scheduler`. The server's worker process is treated by
`--worker-extension-cls`; its engine core imports nothing of ours unless its scheduler is named.
"""

from __future__ import annotations

from typing import Any

from streamserve.worker.pipeserve import compat, shm_wait


def scheduler(*args: Any, **kwargs: Any) -> Any:
    """What vLLM would have made itself, with its own arguments."""
    shm_wait.sleep_at_once()
    vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    return compat.scheduler_base(vllm_config)(*args, **kwargs)
