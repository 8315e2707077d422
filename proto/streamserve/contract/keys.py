"""Where things are in Redis: every key begins with its namespace, pair and writer.

    ss:<namespace>/<pair>/<writer>/…

So one pattern per component suffices in an ACL: a worker may write `ss:*/*/worker/*` of its own pair and nothing else,
the control plane alone writes `control`, a router writes `router`. Every key expires when its owner stops renewing it,
but for the configuration, which outlives its writer by CONFIG_TTL_SECONDS and is renewed while it runs, and for the
records of goodput, which outlive a router that restarts.

    worker/index                     sorted set   worker id -> server time in ms when it last said hello
    worker/<id>/endpoint             JSON         contract/endpoint.py: who and where it is
    worker/<id>/signals              bytes        packed WorkerSignals
    router/<id>/lanes                JSON         LaneWord: what this router says of each lane
    router/<id>/goodput              list         packed GoodputMinute, the newest last, while a canary is held
    control/config                   JSON         RuntimeConfig, the last one written; also the name of the push channel
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SIGNALS_TTL_MS: Final = 1_500
SIGNALS_MIN_INTERVAL_SECONDS: Final = 0.05
SIGNALS_HEARTBEAT_SECONDS: Final = 0.5
ENDPOINT_TTL_MS: Final = 5_000
ENDPOINT_INTERVAL_SECONDS: Final = 1.0
INDEX_TTL_MS: Final = 30_000
LANES_TTL_MS: Final = 3_000
GOODPUT_TTL_SECONDS: Final = 86_400
CONFIG_TTL_SECONDS: Final = 86_400

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The keys of one StreamPair. Raises ValueError when a name could not be a Kubernetes name."""

    namespace: str
    pair: str

    def __post_init__(self) -> None:
        for name in (self.namespace, self.pair):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a DNS label: use lower-case letters, digits and dashes")

    @property
    def root(self) -> str:
        return f"ss:{self.namespace}/{self.pair}"

    @property
    def worker_index(self) -> str:
        return f"{self.root}/worker/index"

    def worker_endpoint(self, worker_id: str) -> str:
        return f"{self.root}/worker/{worker_id}/endpoint"

    def worker_signals(self, worker_id: str) -> str:
        return f"{self.root}/worker/{worker_id}/signals"

    def router_lanes(self, router_id: str) -> str:
        return f"{self.root}/router/{router_id}/lanes"

    def router_goodput(self, router_id: str) -> str:
        return f"{self.root}/router/{router_id}/goodput"

    @property
    def config(self) -> str:
        return f"{self.root}/control/config"

    @property
    def config_channel(self) -> str:
        """Pub/sub channel on which each configuration is pushed whole, in the same form as the key."""
        return self.config
