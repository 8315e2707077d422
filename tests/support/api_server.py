"""A real API server for tests: etcd and kube-apiserver on free ports of the loopback, gone at the end.

    with ApiServer(directory) as server:
        server.install(crd)                                # created or replaced, and waited for
        server.call("POST", "/apis/…?dryRun=All", body)    # Answer(status, body)

The binary comes from hack/cluster/build.py. Both processes share one process group, die with their parent, and keep
everything they write in the directory given. TLS is on, with the certificate that the server makes for itself; the
token is made here. Nothing but the API is there: no controllers, no scheduler, no nodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.processes import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
STOP_SECONDS = 20.0
CALL_SECONDS = 60.0
ATTEMPTS = 3
PR_SET_PDEATHSIG = 1
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class NoBinary(Exception):
    """The API server is not built."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Field and message of everything that was refused, without Kubernetes' own `Invalid value: …: ` before it."""
        found = self.body.get("details", {}).get("causes", [])
        return [(cause.get("field", ""), cause.get("message", "")) for cause in found]


@dataclass(slots=True)
class ApiServer:
    directory: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = 0
    calls: threading.Lock = field(default_factory=threading.Lock)
    """For users in several threads: the connection is one."""
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _logs: list[IO[bytes]] = field(default_factory=list)
    _connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> Self:
        binary = _binary()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start(binary)
                return self
            except BaseException as error:
                self.stop()
                # A free port can be taken between the look and the use.
                if attempt == ATTEMPTS or not isinstance(error, AssertionError):
                    raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, content: str = "") -> Answer:
        """One request on the kept connection; opened anew where the server has closed it."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        headers["Content-Type"] = content or "application/json"
        data = None if body is None else json.dumps(body).encode()
        for last in (False, True):
            if self._connection is None:
                context = ssl.create_default_context(cafile=str(self.directory / "certificates" / "apiserver.crt"))
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self.port, timeout=CALL_SECONDS, context=context
                )
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                text = response.read()
                break
            except (OSError, http.client.HTTPException):
                self._connection.close()
                self._connection = None
                if last:
                    raise
        try:
            return Answer(response.status, json.loads(text))
        except ValueError:
            return Answer(response.status, {"text": text.decode(errors="replace")})

    def write_kubeconfig(self, path: Path) -> Path:
        """An administrator's, readable by nobody else."""
        authority = str(self.directory / "certificates" / "apiserver.crt")
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def install(self, crd: dict[str, Any]) -> None:
        """Create or replace a CRD and wait until its objects can be written. Raises with the server's words."""
        name = crd["metadata"]["name"]
        done = wait_until(lambda: self._written(crd), seconds=START_SECONDS, what=f"{name} is written")
        assert done.ok, f"{name} is refused: {done.body.get('message')}\n" + "\n".join(map(str, done.causes))
        group, spec = crd["spec"]["group"], crd["spec"]
        path = f"/apis/{group}/{spec['versions'][0]['name']}/{spec['names']['plural']}?limit=1"
        wait_until(lambda: self.call("GET", path).ok, seconds=60, what=f"{name} is established")

    def _written(self, crd: dict[str, Any]) -> Answer | None:
        """The answer; None where it says nothing of the CRD: another writer was faster, or the machine is too busy."""
        there = self.call("GET", f"{CRDS}/{crd['metadata']['name']}")
        if there.ok:
            version = there.body["metadata"]["resourceVersion"]
            whole = {**crd, "metadata": {**crd["metadata"], "resourceVersion": version}}
            done = self.call("PUT", f"{CRDS}/{crd['metadata']['name']}", whole)
        else:
            done = self.call("POST", CRDS, crd)
        return None if done.status in (404, 409, 429) or done.status >= 500 else done

    def stop(self) -> None:
        """End both processes and wait for them; harmless when they are gone."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for child in reversed(self._children):
            _end(child)
        self._children.clear()
        for log in self._logs:
            log.close()
        self._logs.clear()

    def _start(self, binary: Path) -> None:
        client, peer, self.port = free_port(), free_port(), free_port()
        self.directory.mkdir(parents=True, exist_ok=True)
        etcd = f"http://127.0.0.1:{client}"
        self._spawn(
            "etcd",
            str(binary),
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync=true",
            "--log-level=warn",
        )
        key, tokens = self.directory / "accounts.pem", self.directory / "tokens.csv"
        key.write_bytes(_key())
        tokens.write_text(f"{self.token},admin,admin,system:masters\n")
        certificates = self.directory / "certificates"
        self._spawn(
            "kube-apiserver",
            str(binary),
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--external-hostname=127.0.0.1",
            f"--cert-dir={certificates}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://streamserve.test",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
            "--enable-priority-and-fairness=false",
            "--profiling=false",
        )
        self._wait((certificates / "apiserver.crt").exists, "the certificate")
        self._wait(self._is_ready, "/readyz")

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz").ok and self.call("GET", "/api/v1/namespaces/default").ok
        except (OSError, http.client.HTTPException):
            return False

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def done() -> bool:
            for child in self._children:
                assert child.poll() is None, f"a process ended with {child.returncode}:\n{self._tail()}"
            return condition()

        try:
            wait_until(done, seconds=START_SECONDS, what=what, every_seconds=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._tail()}") from error

    def _spawn(self, name: str, *command: str) -> None:
        log = (self.directory / f"{name}.log").open("wb")
        self._logs.append(log)
        group = self._children[0].pid if self._children else 0
        self._children.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                process_group=group,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (one prctl call, it takes no lock)
            )
        )

    def _tail(self) -> str:
        parts = [path.read_text(errors="replace")[-2000:] for path in sorted(self.directory.glob("*.log"))]
        return "\n".join(parts)


def _binary() -> Path:
    done = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "cluster" / "build.py"), "--path"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    path = Path(done.stdout.strip())
    if not path.exists():
        raise NoBinary(f"{path} is not there: run `make test-controlplane`, which builds it (minutes, once)")
    return path


def _key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(STOP_SECONDS)
