"""One polling thread for all of a worker's process groups of one, in place of one each.

vLLM makes a dozen gloo groups (world, tensor, pipeline, data, expert, … parallel), also where a worker is alone in all
of them. Each brings a device of its own, whose thread (`gloo_tcp_loop`, gloo/transport/tcp/loop.cc) wakes every 10 ms
for as long as it lives, which was most of what an idle worker took. A group of one never talks to anybody, so all of
them share one device, on the loopback; larger groups are left as they are.
"""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import Any, Final

_LOOPBACK: Final = "127.0.0.1"


def share_devices() -> bool:
    """From now on, in this process. False where torch has no gloo, or no way to hand it a device."""
    c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    gloo: Any = getattr(c10d, "ProcessGroupGloo", None)
    if not hasattr(gloo, "_Options"):
        return False
    if not isinstance(gloo, _Sharing):
        c10d.ProcessGroupGloo = _Sharing("ProcessGroupGloo", (), {"original": gloo, "device": None})
    return True


class _Sharing(type):
    """Stands for the class `original`: makes its instances, knows them, and has its attributes."""

    original: Any
    device: Any

    def __call__(cls, store: Any, rank: int, size: int, *args: Any, **options: Any) -> Any:
        if size > 1 or args or set(options) != {"timeout"}:
            return cls.original(store, rank, size, *args, **options)
        return cls.original(store, rank, size, cls._alone(options["timeout"]))

    def _alone(cls, timeout: timedelta) -> Any:
        if cls.device is None:
            cls.device = cls.original.create_device(hostname=_LOOPBACK)
        alone = cls.original._Options()
        alone._timeout = timeout
        alone._devices = [cls.device]
        return alone

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.original)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.original, name)
