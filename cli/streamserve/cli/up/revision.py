"""Which processes are of one make: a hash of everything that only a new process can take over.

The settings are those that the contract marks cold or fixed, less those that have no meaning on one machine
(pod templates, resources, placement). Names that became folders count by their path.
"""

from __future__ import annotations

import hashlib
import json

from streamserve.contract.streampair import Lifecycle, StreamPair, leaves
from streamserve.contract.streampair.fields import Path, render
from streamserve.contract.streampair.paths import CLUSTER_ONLY


def revision_of(pair: StreamPair) -> str:
    """Ten hexadecimal digits: equal for two pairs that start the same processes."""
    cold = {
        render(path): leaf.value
        for path, leaf in leaves(pair).items()
        if leaf.kind in (Lifecycle.COLD, Lifecycle.FIXED) and not is_cluster_only(path)
    }
    return hashlib.blake2b(json.dumps(cold, sort_keys=True, default=str).encode(), digest_size=5).hexdigest()


def is_cluster_only(path: Path) -> bool:
    """True for a setting that changes nothing in local mode."""
    return any(path[: len(prefix)] == prefix for prefix in CLUSTER_ONLY)
