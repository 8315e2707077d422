"""kubectl, Helm and a client's pod on the cluster of `make cluster-up`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.cluster import client
from tests.cluster.client import Streams, Traffic
from tests.support.processes import wait_until

LOOK_SECONDS = 0.2
TRAFFIC_SECONDS = 1_200
# A request may take 60 s.
ENDED_SECONDS = 70
ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAMESPACE = "serving"
ENGINES = "engines"
RELEASE = "streamserve"
PAIR = "llama"
CLIENT = "client"
EXAMPLE = ROOT / "examples" / "cluster" / "streampair.yaml"
CHART = ROOT / "charts" / "streamserve"
CLUSTER = [sys.executable, str(ROOT / "hack" / "cluster" / "cluster.py")]
TLS = "/etc/streamserve/tls"
Body = dict[str, Any]


def run(*command: str, given: str | None = None, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, check=False, capture_output=True, text=True, timeout=seconds)


@dataclass(slots=True)
class Cluster:
    """Objects are those of NAMESPACE unless a command says otherwise."""

    kubernetes: Path
    kubeconfig: Path
    helm_binary: Path

    def try_kubectl(self, *arguments: str, given: str | None = None, seconds: float = 120.0) -> Any:
        own = [str(self.kubernetes), "kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]
        return run(*own, *arguments, given=given, seconds=seconds)

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 120.0) -> str:
        done = self.try_kubectl(*arguments, given=given, seconds=seconds)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}\n{self.state()}"
        return str(done.stdout)

    def get(self, *what: str) -> Body:
        body: Body = json.loads(self.kubectl("get", *what, "-o=json"))
        return body

    def helm(self, *arguments: str, seconds: float = 300.0) -> str:
        own = [str(self.helm_binary), f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]
        done = run(*own, *arguments, seconds=seconds)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}\n{self.state()}"
        return done.stdout

    def wait(self, look: Callable[[], Any], seconds: float, what: str, explain: Callable[[], str] | None = None) -> Any:
        """The first true answer. A failure tells what `explain` finds, or the state of everything."""
        return wait_until(look, seconds=seconds, what=what, every_seconds=LOOK_SECONDS, explain=explain or self.state)

    # StreamPairs and their pods

    def pair(self) -> Body:
        return self.get("streampair", PAIR)

    def condition(self, kind: str) -> Body:
        """Of the present generation; empty until it is known."""
        body = self.pair()
        found = (each for each in body.get("status", {}).get("conditions", ()) if each["type"] == kind)
        condition: Body = next(found, {})
        return condition if condition.get("observedGeneration") == body["metadata"]["generation"] else {}

    def until(self, kind: str, status: str, seconds: float, reason: str = "") -> Body:
        def is_so() -> Body | None:
            found = self.condition(kind)
            return found if found.get("status") == status and reason in ("", found.get("reason")) else None

        found: Body = self.wait(is_so, seconds, f"{kind} is {status} {reason}")
        return found

    def edit(self, spec: Body) -> None:
        self.kubectl("patch", "streampair", PAIR, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def pods(self, role: str = "") -> list[Body]:
        """The pair's, or those of one role, that are not being deleted."""
        selector = f"streamserve.io/pair={PAIR}" + (f",streamserve.io/role={role}" if role else "")
        items: list[Body] = self.get("pods", f"--selector={selector}")["items"]
        return [each for each in items if "deletionTimestamp" not in each["metadata"]]

    def makes(self) -> dict[str, tuple[str, int]]:
        """Of each pod its uid and how often its containers were started anew."""
        return {
            pod["metadata"]["name"]: (
                pod["metadata"]["uid"],
                sum(each["restartCount"] for each in pod["status"].get("containerStatuses", ())),
            )
            for pod in self.pods()
        }

    def ready_lanes(self) -> int:
        """Lanes of which every worker's pod is Ready, as a client of the API sees it now."""
        lanes: dict[tuple[str, str], list[bool]] = {}
        for pod in self.pods():  # of one moment: what is ready moves from lane to lane
            labels = pod["metadata"]["labels"]
            if "streamserve.io/lane" not in labels:
                continue
            conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
            key = (labels["streamserve.io/lane"], labels["streamserve.io/revision"])
            lanes.setdefault(key, []).append(conditions.get("Ready") == "True")
        return sum(len(ready) >= 2 and all(ready) for ready in lanes.values())

    def state(self) -> str:
        """For a failure: what there is, and the end of what the operator said."""
        parts = [
            self.try_kubectl("get", "streampairs,pods", "-o=wide").stdout,
            self.try_kubectl("get", "streampair", PAIR, "-o=jsonpath={.status}").stdout,
            self.try_kubectl("get", "events", "--sort-by=.lastTimestamp").stdout[-3000:],
            self.try_kubectl("logs", f"deployment/{RELEASE}-operator", "--tail=30", "--all-containers").stdout[-4000:],
        ]
        return "\n".join(parts)

    def metric(self, **values: str | None) -> None:
        """What external.metrics.k8s.io says from now on; None: it has no value."""
        file = self.kubeconfig.parent / "metrics.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
        fresh.rename(file)

    # A client

    def generate(self, prompt: str, *arguments: str, seconds: float = 60.0) -> list[Body]:
        """The chunks of one answer, as `streamserve generate --json` prints them in the client's pod."""
        command = [*generate_command(), "--json", *arguments, prompt]
        text = self.kubectl("exec", CLIENT, "--", *command, seconds=seconds)
        return [json.loads(line) for line in text.splitlines()]

    @contextmanager
    def streams(
        self, users: int = 4, max_tokens: int = 512, pause_seconds: float = 0.05, pair: str = PAIR
    ) -> Iterator[Streams]:
        """Answers of so many tokens over so many connections at once, from the client's pod, while the block lasts."""
        own = [str(self.kubernetes), "kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]
        target = f"{pair}-router.{NAMESPACE}.svc:50051"
        given = (target, TLS, str(users), str(max_tokens), str(pause_seconds), str(TRAFFIC_SECONDS))
        command = [*own, "exec", "--stdin", CLIENT, "--", "python3", "-c", client.STREAMS, *given]
        streams = Streams()
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
            ThreadPoolExecutor(1) as reader,
        ):
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "begun"
            reading = reader.submit(streams.follow, child.stdout)
            try:
                yield streams
            finally:
                child.stdin.close()
                try:
                    status = child.wait(ENDED_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    status = child.wait()
                reading.result()
                if status != 0:
                    streams.failed.append(f"the client ended with status {status}")

    @contextmanager
    def silent_kubelet(self, node: str) -> Iterator[None]:
        """The kubelet of a node stands still: its containers run on, and nobody says so."""
        pid = int((self.kubeconfig.parent / node / "kubelet-server.pid").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """A client that sends one request after another for as long as the block lasts, from its pod."""
        own = [str(self.kubernetes), "kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]
        stop = f"/tmp/stop-{uuid4().hex}"
        loop = client.LOOP.format(command=" ".join(generate_command()), stop=stop, seconds=TRAFFIC_SECONDS)
        command = [*own, "exec", CLIENT, "--", "sh", "-c", loop]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
            traffic = Traffic()
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "begun"
            try:
                yield traffic
            finally:
                self.kubectl("exec", CLIENT, "--", "touch", stop)
                for line in child.stdout:
                    traffic.took(line.strip())
                child.wait(60)


def generate_command(pair: str = PAIR, namespace: str = NAMESPACE) -> Sequence[str]:
    """The client of the command line, as it runs in a pod of the namespace."""
    files = (("ca", "ca.crt"), ("certificate", "tls.crt"), ("key", "tls.key"))
    tls = [part for flag, name in files for part in (f"--tls-{flag}", f"{TLS}/{name}")]
    return ["streamserve", "generate", "--server", f"{pair}-router.{namespace}.svc:50051", *tls]


def library(name: str) -> Path:
    """A shared library of this machine."""
    rows = run("ldconfig", "-p").stdout.splitlines()
    found = [row.rpartition(" => ")[2] for row in rows if row.split()[:1] == [name]]
    assert found, f"{name} is not installed; vLLM needs it"
    return Path(found[0]).resolve()
