"""The ConfigMap: the durable copy of the runtime configuration, watched by every worker and router.

It holds the wire form as it is pushed through Redis, so that a reader needs one decoder and the two ways can be
compared byte by byte. Where a canary of it stands is the operator's own note beside it (`canary/memory.py`).
"""

from __future__ import annotations

from streamserve.contract import runtime_config
from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.builders import parts
from streamserve.operator.canary.memory import Memory, notes_of
from streamserve.operator.naming import Manifest


def config_map(pair: StreamPair, memory: Memory) -> Manifest:
    data = {parts.CONFIG_FILE: runtime_config.encode(memory.config).decode()}
    made = naming.manifest(pair, "v1", "ConfigMap", naming.config_name(pair.metadata.name), "", {"data": data})
    if notes := notes_of(memory.state):
        made["metadata"]["annotations"] = notes
    return made
