"""What the operator is told when it starts; everything else is in the StreamPairs."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streamserve.operator.edge.lease import (
    DURATION_SECONDS,
    RENEW_DEADLINE_SECONDS,
    RETRY_SECONDS,
    LeaseSettings,
)
from streamserve.operator.edge.renewal import RenewalSettings
from streamserve.operator.edge.store import Key
from streamserve.operator.edge.watch import RELIST_SECONDS
from streamserve.operator.site import REDIS_KEYS, TLS_KEYS, Site
from streamserve.runtime import tls
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import split_address
from streamserve.runtime.tls import TlsFiles

REDIS_VARIABLE: Final = "STREAMSERVE_REDIS_URL"
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SECRET: Final = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_EPILOG: Final = f"""\
The operator makes what StreamPairs ask for: pods, Services, a router, the configuration that both read. It needs the
CRDs of crds/ and credentials: the service account of its pod, or the current context of KUBECONFIG.

Any number of replicas may run. One holds the Lease and writes, the others keep their watches warm and write nothing.
One that cannot renew the Lease for {RENEW_DEADLINE_SECONDS:g} s (two thirds of --lease-seconds) stops writing
by itself, before another may take it.

In each namespace with a StreamPair a Secret named --secret holds the entries {", ".join(REDIS_KEYS.values())}
and, with --tls, {", ".join(TLS_KEYS)}. The operator's own Redis URL comes from {REDIS_VARIABLE}: it has
a password and so is no argument. Without Redis no lane's state is known and no pod becomes ready.

The certificate in each --renew is made anew, for as long again, once two thirds of its life are over: with a new key,
the same names, and signed by --renew-authority. One that another authority signed is left alone. This takes the right
to get and patch those Secrets, and to get the authority's. Pods take the new files without a restart.

/metrics, /healthz and /readyz are on the metrics address. /healthz answers 503 when a watch or the queue does not live
any more although the API server answers; /readyz while a kind cannot be watched or the API server does not answer.

SIGINT or SIGTERM stops it: what is being written is finished, the Lease is released.
Exit status: 0 stopped as asked, 1 a part of it failed, 2 it could not start as asked.

example:
  {REDIS_VARIABLE}=redis://127.0.0.1:6379/0 streamserve-operator --namespace llm \\
      --worker-image streamserve/worker:0.1.0 --router-image streamserve/router:0.1.0 --metrics 127.0.0.1:9090"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """`namespaces` empty means all of them. `tls` is the operator's own identity towards workers and routers.
    `renewal` None: no certificate is renewed, and no Secret is read."""

    namespaces: tuple[str, ...]
    lease: LeaseSettings
    site: Site
    redis_url: str | None
    redis_users: Path | None
    tls: TlsFiles | None
    renewal: RenewalSettings | None
    relist_seconds: float
    metrics: str
    ready_file: Path | None
    die_with_parent: bool
    log_level: str


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamserve-operator",
        description="Makes what StreamPairs ask for, on Kubernetes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="serve the StreamPairs of this namespace; may be given again (default: of every namespace)",
    )
    where.add_argument("--lease-name", default="streamserve-operator", metavar="NAME", help="default: %(default)s")
    where.add_argument(
        "--lease-namespace",
        metavar="NAME",
        help="where the Lease lies (default: the operator's own namespace; outside a cluster, the first --namespace)",
    )
    where.add_argument(
        "--lease-seconds",
        type=_seconds,
        default=DURATION_SECONDS,
        metavar="S",
        help="how long others wait for a leader that is silent; it renews within two thirds (default: %(default)g)",
    )
    made = parser.add_argument_group("what is made")
    made.add_argument("--worker-image", required=True, metavar="IMAGE", help="where spec.engine.image is empty")
    made.add_argument("--router-image", required=True, metavar="IMAGE")
    made.add_argument(
        "--image-pull-policy", choices=("Always", "IfNotPresent", "Never"), default="IfNotPresent", help="of both"
    )
    made.add_argument(
        "--secret",
        default=Site.__dataclass_fields__["secret"].default,
        metavar="NAME",
        help="the Secret of each namespace (default: %(default)s)",
    )
    made.add_argument("--tls", action="store_true", help="workers and routers talk with mutual TLS")
    made.add_argument(
        "--tls-secret",
        default="",
        metavar="NAME",
        help=f"the Secret of each namespace with {', '.join(TLS_KEYS)} (default: the same one)",
    )
    made.add_argument(
        "--topology-key",
        default=Site.__dataclass_fields__["topology_key"].default,
        metavar="LABEL",
        help="the node label that placement SameTopology means (default: %(default)s)",
    )
    made.add_argument(
        "--redis-users",
        type=Path,
        metavar="FILE",
        help="the users that a namespace has in Redis, in the form of its ACL files: made with its first StreamPair, "
        "removed with its last (default: Redis' users are not touched)",
    )
    renewed = parser.add_argument_group("certificates that it renews")
    renewed.add_argument(
        "--renew-authority",
        default="",
        metavar="SECRET",
        help="who signs: a Secret with tls.crt and tls.key in the Lease's namespace (default: nothing is renewed)",
    )
    renewed.add_argument(
        "--renew",
        action="append",
        default=[],
        metavar="NAMESPACE/SECRET",
        help="renew tls.crt and tls.key of this Secret; may be given again",
    )
    own = parser.add_argument_group("the process itself")
    own.add_argument("--metrics", default="127.0.0.1:9090", metavar="HOST:PORT", help="default: %(default)s")
    own.add_argument("--tls-ca", type=Path, metavar="FILE", help="with --tls: who signs workers and routers")
    own.add_argument("--tls-certificate", type=Path, metavar="FILE", help="with --tls: the operator's certificate")
    own.add_argument("--tls-key", type=Path, metavar="FILE", help="with --tls: its key")
    own.add_argument(
        "--tls-peer-name",
        default="",
        metavar="NAME",
        help="with --tls: the name in the certificates of workers and routers, which are dialled by their pods' IPs; "
        "routers are told as well (default: the certificates hold the IPs)",
    )
    own.add_argument(
        "--relist-seconds",
        type=_seconds,
        default=RELIST_SECONDS,
        metavar="S",
        help="how often everything is listed anew, in case a watch lost something (default: %(default)g, about)",
    )
    own.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    own.add_argument("--ready-file", type=Path, metavar="PATH", help='written once it runs: {"metrics": "host:port"}')
    own.add_argument("--die-with-parent", action="store_true", help="end when the process that started it ends")
    return parser


def parse(argv: Sequence[str] | None = None) -> OperatorSettings:
    """Raises SetupError that says what to give instead."""
    args = parser().parse_args(argv)
    namespaces = tuple(dict.fromkeys(args.namespace))
    lease_namespace = args.lease_namespace or _own_namespace() or next(iter(namespaces), "")
    if not lease_namespace:
        raise SetupError("where does the Lease lie? Outside a cluster give --lease-namespace")
    for name in (*namespaces, lease_namespace):
        if not _LABEL.fullmatch(name):
            raise SetupError(f"{name!r} is no namespace: use lower-case letters, digits and dashes")
    files = tls.from_arguments(args.tls_ca, args.tls_certificate, args.tls_key, args.tls_peer_name or None)
    if args.tls and files is None:
        raise SetupError("with --tls the operator needs an identity: --tls-ca, --tls-certificate and --tls-key")
    split_address(args.metrics)
    redis_url = os.environ.get(REDIS_VARIABLE) or None
    if redis_url is not None and not redis_url.startswith(_REDIS_SCHEMES):
        raise SetupError(f"{REDIS_VARIABLE} is no Redis URL: it begins with {' or '.join(_REDIS_SCHEMES)}")
    share = args.lease_seconds / DURATION_SECONDS
    return OperatorSettings(
        namespaces=namespaces,
        lease=LeaseSettings(
            namespace=lease_namespace,
            name=args.lease_name,
            identity=f"{socket.gethostname()[:63]}_{secrets.token_hex(4)}",
            duration_seconds=args.lease_seconds,
            renew_deadline_seconds=RENEW_DEADLINE_SECONDS * share,
            retry_seconds=RETRY_SECONDS * share,
        ),
        site=Site(
            worker_image=args.worker_image,
            router_image=args.router_image,
            secret=args.secret,
            tls_secret=args.tls_secret,
            tls=args.tls,
            tls_peer_name=args.tls_peer_name,
            image_pull_policy=args.image_pull_policy,
            topology_key=args.topology_key,
        ),
        redis_url=redis_url,
        redis_users=args.redis_users,
        tls=files,
        renewal=_renewal(lease_namespace, args.renew_authority, args.renew),
        relist_seconds=args.relist_seconds,
        metrics=args.metrics,
        ready_file=args.ready_file,
        die_with_parent=args.die_with_parent,
        log_level=args.log_level,
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 1.0 <= value <= 3_600.0:
        raise argparse.ArgumentTypeError("give 1 to 3600 seconds")
    return value


def _renewal(lease_namespace: str, authority: str, leaves: Sequence[str]) -> RenewalSettings | None:
    """Raises SetupError."""
    if not authority and not leaves:
        return None
    if not authority or not leaves:
        raise SetupError("renewing takes who signs and what is signed: --renew-authority and --renew, both")
    if not _SECRET.fullmatch(authority):
        raise SetupError(f"--renew-authority {authority!r} is no Secret's name; it lies in {lease_namespace}")
    signer, found = (lease_namespace, authority), tuple(dict.fromkeys(_leaf(each) for each in leaves))
    if signer in found:
        raise SetupError(f"--renew {'/'.join(signer)} is the authority itself, which is not renewed: leave it out")
    return RenewalSettings(authority=signer, leaves=found)


def _leaf(text: str) -> Key:
    namespace, slash, name = text.partition("/")
    if not slash or not _LABEL.fullmatch(namespace) or not _SECRET.fullmatch(name):
        raise SetupError(f"--renew {text!r} names no Secret: write NAMESPACE/SECRET, for example llm/streamserve")
    return namespace, name


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""
