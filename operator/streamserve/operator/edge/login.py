"""Who we are to the API server: the pod's service account, or a kubeconfig outside a cluster.

A service account's token is replaced about every hour: it is read anew every REFRESH_SECONDS, and at once when the
server says 401.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import kopf

from streamserve.runtime.errors import SetupError

REFRESH_SECONDS: Final = 60.0
Login = Callable[[], kopf.ConnectionInfo]


def login() -> kopf.ConnectionInfo:
    """Raises SetupError that says where credentials are looked for."""
    settings = kopf.OperatorSettings()
    try:
        found = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    except (OSError, KeyError, ValueError, kopf.LoginError) as error:
        raise SetupError(f"cannot read the Kubernetes credentials: {error!r}") from None
    if found is None or not found.server:
        tried = os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise SetupError(f"no Kubernetes credentials: this is no pod, and {tried} says nothing; set KUBECONFIG")
    return found
