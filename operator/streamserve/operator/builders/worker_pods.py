"""The pods of a lane, and the revision that says which pods are of one make.

A pod's revision is the hash of both roles' pods as they would be rendered, less what tells one pod from another and
less what is hot: it changes exactly when a lane has to be replaced, be it for an edit of the spec or for a new
operator, and it goes back when the edit does. Hot parts are read at the pod's start only (drainSeconds): a drain that
the operator begins takes the present value, whatever the pod was started with.

A worker ends by SIGTERM: it refuses what is new, finishes what runs, at most --drain-seconds. Its grace period covers
that, the wait before it and the engine's stop. A decode worker waits HANDOVER_SECONDS before SIGTERM, so that prompts
whose KV a prefill worker has just computed still find it when a whole lane is evicted at once.

A pod is Ready when its probe passes and the readiness gate `streamserve.io/LaneReady` is true: the router decides that
after a canary transfer, the operator writes it down.
"""

from __future__ import annotations

from typing import Any, Final

from streamserve.contract import launch
from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import EngineKind, Placement, StreamPair
from streamserve.contract.streampair.workers import Resources
from streamserve.operator import naming
from streamserve.operator.builders import overlay, parts, weights
from streamserve.operator.naming import Manifest
from streamserve.operator.site import Site

START_SECONDS: Final = {EngineKind.VLLM: 1_800, EngineKind.SIMULATOR: 120}
HANDOVER_SECONDS: Final = 3
STOP_SECONDS: Final = 15
CONTAINER: Final = "worker"
_SHARED_MEMORY: Final = {EngineKind.VLLM: "4Gi", EngineKind.SIMULATOR: "64Mi"}
_STARTUP_PERIOD_SECONDS: Final = 5
_QUIET: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
# Workers are pods of their own: what UCX takes for memory shared with a pod of the same node is not.
_TRANSPORTS: Final = {"UCX_TLS": "^sm"}
_ANY_LANE: Final = 0
_NO_REVISION: Final = "0000000000"


def pod(pair: StreamPair, site: Site, lane: int, slot: Slot, revision: str) -> Manifest:
    """The pod of one place in one lane."""
    name, role = pair.metadata.name, slot.role
    made = naming.manifest(pair, "v1", "Pod", naming.pod_name(name, lane, slot, revision), role)
    made["metadata"]["labels"] |= {
        naming.LANE: str(lane),
        naming.REPLICA: str(slot.index),
        naming.REVISION: revision,
    }
    made["spec"] = _spec(pair, site, lane, slot, revision)
    template = (pair.spec.prefill if role == "prefill" else pair.spec.decode).template
    overlay.lay_over(made["metadata"], made["spec"], template)
    return made


def revision_of(pair: StreamPair, site: Site) -> str:
    """Equal for two specs (and two operators) that render the same pods."""
    return naming.fingerprint([_cold(pair, site, role) for role in naming.ROLES])


def grace_seconds(pair: StreamPair, role: str) -> int:
    """From the request to delete a pod until it is killed."""
    return pair.spec.update.drain_seconds + STOP_SECONDS + (HANDOVER_SECONDS if role == "decode" else 0)


def start_seconds(pair: StreamPair) -> int:
    """How long a worker may take from its container's start until it serves."""
    return START_SECONDS[pair.spec.engine.kind]


def _cold(pair: StreamPair, site: Site, role: str) -> Manifest:
    """The uid is left out too: a StreamPair that was deleted and made again has the same pods."""
    update = pair.spec.update.model_copy(update={"drain_seconds": 0})
    spec = pair.spec.model_copy(update={"update": update})
    metadata = pair.metadata.model_copy(update={"uid": ""})
    fixed = pair.model_copy(update={"spec": spec, "metadata": metadata})
    return pod(fixed, site, _ANY_LANE, Slot(role, 0), _NO_REVISION)


def _spec(pair: StreamPair, site: Site, lane: int, slot: Slot, revision: str) -> dict[str, Any]:
    spec, role = pair.spec, slot.role
    found = weights.weights(spec)
    volumes, mounts = parts.volumes(pair.metadata.name, site)
    shared = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY[spec.engine.kind]}}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": spec.engine.image or site.worker_image,
        "imagePullPolicy": site.image_pull_policy,
        "command": ["streamserve-worker"],
        "args": _arguments(pair, site, lane, slot, revision, found),
        "env": _environment(spec.engine.kind, site, found),
        "ports": [
            parts.port("grpc", parts.GRPC_PORT),
            parts.port("metrics", parts.METRICS_PORT),
            parts.port("nixl", parts.NIXL_PORT),
        ],
        **_resources((spec.prefill if role == "prefill" else spec.decode).resources),
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}, *found.mounts],
        "startupProbe": parts.http_probe(
            "/readyz",
            period_seconds=_STARTUP_PERIOD_SECONDS,
            failures=start_seconds(pair) // _STARTUP_PERIOD_SECONDS,
        ),
        "readinessProbe": parts.http_probe("/readyz", period_seconds=5, failures=2),
        "livenessProbe": parts.http_probe("/healthz", period_seconds=10, failures=3),
        # The last lines of a worker that died are in its pod's status: conditions quote them without reading logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(parts.CONTAINER_SECURITY),
    }
    if role == "decode":
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": HANDOVER_SECONDS}}}
    made: dict[str, Any] = {
        "containers": [container],
        "volumes": [*volumes, shared, *found.volumes],
        "readinessGates": [{"conditionType": naming.LANE_READY}],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": grace_seconds(pair, role),
        "serviceAccountName": naming.child_name(pair.metadata.name, "worker"),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(parts.POD_SECURITY),
    }
    if key := _topology(spec.placement, site):
        made["affinity"] = _near_its_lane(pair.metadata.name, lane, key)
    return made


def _arguments(pair: StreamPair, site: Site, lane: int, slot: Slot, revision: str, found: weights.Weights) -> list[str]:
    """Routers dial the pod's IP: a name would be cached by resolvers for longer than a pod is away.

    In the user's values `$(` is doubled, which keeps Kubernetes from expanding it.
    """
    engine = launch.engine_arguments(pair.spec, slot.role, model=found.model, draft=found.draft)
    return [
        *(argument.replace("$(", "$$(") for argument in engine),
        *("--id", launch.worker_name(lane, slot), "--lane", launch.lane_name(lane), "--revision", revision),
        *("--namespace", pair.metadata.namespace, "--pair", pair.metadata.name, "--pair-uid", pair.metadata.uid),
        *("--grpc", f"0.0.0.0:{parts.GRPC_PORT}", "--advertise", f"$(POD_IP):{parts.GRPC_PORT}"),
        *("--metrics", f"0.0.0.0:{parts.METRICS_PORT}", "--nixl", f"$(POD_IP):{parts.NIXL_PORT}"),
        *("--config", f"{parts.CONFIG_DIRECTORY}/{parts.CONFIG_FILE}"),
        *("--drain-seconds", str(pair.spec.update.drain_seconds)),
        *parts.tls_arguments(site),
    ]


def _environment(kind: EngineKind, site: Site, found: weights.Weights) -> list[dict[str, Any]]:
    variables = [parts.from_field("POD_IP", "status.podIP"), *parts.environment("worker", site)]
    if kind is EngineKind.VLLM:
        quiet = _QUIET | _TRANSPORTS | ({"HF_HUB_OFFLINE": "1"} if found.offline else {})
        variables += [{"name": name, "value": value} for name, value in quiet.items()]
    if found.token is not None:
        variables.append(parts.from_secret(weights.TOKEN_VARIABLE, found.token.name, found.token.key))
    return variables


def _resources(wanted: Resources) -> dict[str, Any]:
    quantities = {
        kind: {name: str(quantity) for name, quantity in values.items()}
        for kind, values in (("limits", wanted.limits), ("requests", wanted.requests))
        if values
    }
    return {"resources": quantities} if quantities else {}


def _topology(placement: Placement, site: Site) -> str:
    return {Placement.SAME_NODE: "kubernetes.io/hostname", Placement.SAME_TOPOLOGY: site.topology_key}.get(
        placement, ""
    )


def _near_its_lane(pair: str, lane: int, topology_key: str) -> dict[str, Any]:
    """The lane's first pod may go anywhere: a pod that matches its own term satisfies it while it is alone."""
    term = {
        "labelSelector": {"matchLabels": {naming.PAIR: pair, naming.LANE: str(lane)}},
        "topologyKey": topology_key,
    }
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
