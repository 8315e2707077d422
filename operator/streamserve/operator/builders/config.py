"""The ConfigMap: the durable copy of the runtime configuration, watched by every worker and router.

It holds the wire form as it is pushed through Redis, so that a reader needs one decoder and the two ways can be
compared byte by byte.
"""

from __future__ import annotations

from streamserve.contract import runtime_config
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.builders import parts
from streamserve.operator.naming import Manifest


def config_map(pair: StreamPair, config: RuntimeConfig) -> Manifest:
    data = {parts.CONFIG_FILE: runtime_config.encode(config).decode()}
    return naming.manifest(pair, "v1", "ConfigMap", naming.config_name(pair.metadata.name), "", {"data": data})
