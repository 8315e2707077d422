"""Install, serve, edit hot, edit cold, scale, upgrade and leave, in this order, each as an SRE would."""

from __future__ import annotations

import base64
import json
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.cluster import client, leftovers, rollouts, scraped, wanting
from tests.cluster.support import (
    CHART,
    CLIENT,
    ENGINES,
    EXAMPLE,
    HERE,
    NAMESPACE,
    PAIR,
    RELEASE,
    ROOT,
    TLS,
    Body,
    Cluster,
    generate_command,
    library,
)

SITE = sysconfig.get_paths()["purelib"]
SIGNALS = EXAMPLE.parent / "autoscaling" / "signals.yaml"
PROMPT = "The tide comes in twice a day, because"
HOT_EDITS = 50
HOT_SECONDS = 2.0
# A kubelet looks at a mounted ConfigMap about once a minute, each at a time of its own.
CONFIGMAP_SECONDS = 150
FILLED_SECONDS = 5.0
# Evidence comes by the minute: looks at 60 s each, of which the first that can bound anything is the third or fourth.
VERDICT_SECONDS = 620
# A node counts as silent 50 s after its kubelet's last word.
SILENCE_SECONDS = 100
AUTOSCALED_SECONDS = 90
# Four clients begin anew at times of their own.
GAP_SECONDS = 1.0
INSTALL = [
    *("upgrade", "--install", RELEASE, str(CHART), "--create-namespace", "--wait", "--timeout=3m"),
    *("--set=redis.embedded.image.repository=streamserve/redis", "--set-string=redis.embedded.image.tag=7"),
    f"--set=namespaces={{{NAMESPACE},{ENGINES}}}",
]


def test_two_nodes_are_ready_and_have_gpus(cluster: Cluster) -> None:
    nodes = cluster.get("nodes")["items"]
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in nodes] == ["8", "8"]


def test_the_chart_installs_under_restricted_pod_security(cluster: Cluster) -> None:
    for namespace in (NAMESPACE, ENGINES):
        cluster.try_kubectl("create", "namespace", namespace)
    level = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "--overwrite", "namespace", NAMESPACE, level)
    cluster.helm(*INSTALL)
    cluster.helm("test", RELEASE)


def test_a_stream_pair_becomes_ready_and_serves_from_both_lanes(cluster: Cluster) -> None:
    cluster.kubectl("apply", "-f", str(EXAMPLE), "-f", str(HERE / "client.yaml"))
    cluster.kubectl("wait", "--for=condition=Ready", f"streampair/{PAIR}", "--timeout=180s", seconds=200)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
    with ThreadPoolExecutor(8) as many:
        prompts = [f"Prompt number {number}" for number in range(8)]
        answers = list(many.map(lambda prompt: cluster.generate(prompt, "--max-tokens=256", "--ignore-eos"), prompts))
    assert [sum(len(chunk["token_ids"]) for chunk in chunks) for chunks in answers] == [256] * len(prompts)
    assert {chunks[-1]["route"]["lane"] for chunks in answers} == {"lane-0", "lane-1"}


def test_the_openai_front_answers_through_the_service(cluster: Cluster) -> None:
    secret = cluster.get("secret", "streamserve-tokens")["data"]["default"]
    token = base64.b64decode(secret).decode()
    certificate = ("--cert", f"{TLS}/tls.crt", "--key", f"{TLS}/tls.key")
    for shown in ({"options": certificate}, {"token": token}):
        status, text = _by_curl(cluster, **shown)
        assert status == 200, text
        answer = json.loads(text)
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] == 8
    status, text = _by_curl(cluster, token=token, stream=True)
    *events, last = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert (status, last) == (200, "[DONE]")
    assert len(events) > 1
    assert "".join(choice["delta"].get("content", "") for event in events for choice in json.loads(event)["choices"])
    for refused in ("", token + "s"):
        status, text = _by_curl(cluster, token=refused)
        assert status == 401
        assert json.loads(text)["error"]["message"]
    assert _over_grpc(cluster, token) == {"tokens": 8}
    for refused in ("", token + "s"):
        assert _over_grpc(cluster, refused) == {"code": "UNAUTHENTICATED"}


def _by_curl(
    cluster: Cluster, *, options: Sequence[str] = (), token: str = "", stream: bool = False
) -> tuple[int, str]:
    """(status, body). The token goes over standard input: what is in argv every process of the pod can read."""
    body = {"model": "llama", "max_tokens": 8, "stream": stream}
    body["messages"] = [{"role": "user", "content": "What is a tide?"}]
    shown = ("--header", "@-") if token else ()
    words = ("curl", "--silent", "--show-error", "--max-time", "30", "--cacert", f"{TLS}/ca.crt", *options, *shown)
    url = f"https://{PAIR}-router.{NAMESPACE}.svc:8000/v1/chat/completions"
    words += ("--write-out", r"\n%{http_code}", "--json", json.dumps(body), url)
    said = cluster.kubectl("exec", "--stdin", CLIENT, "--", *words, given=f"Authorization: Bearer {token}")
    text, _, status = said.rpartition("\n")
    return int(status), text


def _over_grpc(cluster: Cluster, token: str) -> Body:
    """On the port that takes tokens and asks for no certificate."""
    target = f"{PAIR}-router.{NAMESPACE}.svc:50052"
    words = ("exec", "--stdin", CLIENT, "--", "python3", "-c", client.TOKEN, target, TLS)
    answer: Body = json.loads(cluster.kubectl(*words, given=token))
    return answer


def test_real_engines_serve_and_the_kv_cache_moves_between_their_pods(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    """vLLM on the nodes' CPUs. The environment is this machine's, mounted: such a namespace is not restricted."""
    text = (HERE / "engines.yaml").read_text()
    for name, path in (
        ("MODELS", ROOT / "examples" / "models"),
        ("ENVIRONMENT", SITE),
        ("NUMA", library("libnuma.so.1")),
    ):
        text = text.replace(name, str(path))
    there = f"--namespace={ENGINES}"

    def leave() -> None:
        cluster.try_kubectl(there, "delete", "streampair/tiny", "pod/client", "--timeout=120s", seconds=130)
        # Engines that end are busy, and what is timed next would wait for them.
        gone = ["wait", "--for=delete", "pod", "--selector=streamserve.io/pair=tiny", "--timeout=120s"]
        cluster.try_kubectl(there, *gone, seconds=130)

    request.addfinalizer(leave)
    cluster.kubectl(there, "apply", "-f", "-", given=text)
    cluster.kubectl(there, "apply", "-f", str(HERE / "client.yaml"))
    cluster.kubectl(there, "wait", "--for=condition=Ready", "streampair/tiny", "--timeout=400s", seconds=420)
    cluster.kubectl(there, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
    before = _kv_bytes(cluster)
    command = generate_command("tiny", ENGINES)
    text = cluster.kubectl(there, "exec", "client", "--", *command, "--json", "--max-tokens=64", "--ignore-eos", PROMPT)
    chunks: list[Body] = [json.loads(line) for line in text.splitlines()]
    assert sum(len(chunk["token_ids"]) for chunk in chunks) == 64
    assert _kv_bytes(cluster) > before


def test_a_hot_edit_is_obeyed_within_two_seconds_each_of_many_times(cluster: Cluster) -> None:
    before, slowest = cluster.makes(), 0.0
    for number in range(HOT_EDITS):
        bound = (0, 3, 1, 5)[number % 4]
        cluster.edit({"speculation": {"depth": {"min": min(bound, 1), "max": bound}}})
        began = time.monotonic()
        cluster.kubectl("wait", "--for=condition=ConfigApplied", f"streampair/{PAIR}", "--timeout=10s")
        slowest = max(slowest, time.monotonic() - began)
    assert slowest <= HOT_SECONDS, f"the slowest took {slowest:.2f} s, the start of `kubectl wait` included"
    assert cluster.makes() == before, "a pod was replaced or started anew"
    said = cluster.pair()["status"]["config"]
    assert said["appliedBy"] == said["of"] > 0
    assert said["generation"] == cluster.pair()["metadata"]["generation"]


@pytest.mark.parametrize("bound", [0, 4])
def test_the_depths_that_are_scheduled_follow(cluster: Cluster, bound: int) -> None:
    cluster.edit({"speculation": {"depth": {"min": bound, "max": bound}}})
    cluster.until("ConfigApplied", "True", 10)
    chunks = cluster.generate("What is a tide?", "--max-tokens", "64", "--ignore-eos")
    assert chunks[-1]["usage"]["depths_seen"] == [bound]
    cluster.edit({"speculation": {"depth": {"min": 1, "max": 6}}})
    cluster.until("ConfigApplied", "True", 10)


def test_a_canary_lane_alone_obeys_a_new_setting_and_the_kill_switch_passes_it_by(cluster: Cluster) -> None:
    cluster.edit({"speculation": {"depth": {"min": 4, "max": 4}}})
    cluster.until("ConfigApplied", "True", 10)
    rollout = {"canaryLanes": 1, "holdSeconds": 600}
    cluster.edit({"speculation": {"depth": {"min": 2, "max": 2}, "rollout": rollout}})
    cluster.until("ConfigApplied", "False", 10, "CanaryHolding")
    cluster.wait(lambda: _depths_by_lane(cluster) == {"lane-0": {2}, "lane-1": {4}}, 30, "one lane tries depth 2")
    cluster.edit({"speculation": {"policy": "Off"}})
    began = time.monotonic()
    cluster.kubectl("wait", "--for=condition=ConfigApplied", f"streampair/{PAIR}", "--timeout=10s")
    took = time.monotonic() - began
    assert took <= HOT_SECONDS, f"the kill switch took {took:.2f} s"
    assert set().union(*_depths_by_lane(cluster).values()) <= {0}
    cluster.edit({"speculation": {"policy": "Goodput", "depth": {"min": 1, "max": 6}, "rollout": {"canaryLanes": 0}}})
    cluster.until("ConfigApplied", "True", 10)


def test_a_canary_that_is_worse_comes_back_and_one_that_is_better_goes_to_all_lanes(cluster: Cluster) -> None:
    """Judged by what the routers recorded of real requests. In turns, for FlowGuard would spare the slower lane."""
    at_once, tried = {"canaryLanes": 0}, {"canaryLanes": 1, "holdSeconds": 60, "minRequests": 60}
    deep, none = {"min": 4, "max": 4}, {"min": 0, "max": 0}
    cluster.edit({"routing": {"policy": "RoundRobin"}, "speculation": {"depth": deep, "rollout": at_once}})
    cluster.until("ConfigApplied", "True", 10)
    with cluster.streams(users=6, max_tokens=64, pause_seconds=0.5) as streams:
        cluster.edit({"speculation": {"depth": none, "rollout": tried}})
        cluster.until("ConfigApplied", "False", 10, "CanaryHolding")
        cluster.until("ConfigApplied", "False", VERDICT_SECONDS, "CanaryWorse")
        cluster.wait(lambda: _depths_by_lane(cluster) == {"lane-0": {4}, "lane-1": {4}}, 30, "both lanes as before")
        cluster.edit({"speculation": {"rollout": at_once}})
        cluster.until("ConfigApplied", "True", 10)
        cluster.edit({"speculation": {"depth": deep, "rollout": tried}})
        cluster.until("ConfigApplied", "False", 10, "CanaryHolding")
        cluster.until("ConfigApplied", "True", VERDICT_SECONDS)
        cluster.wait(lambda: _depths_by_lane(cluster) == {"lane-0": {4}, "lane-1": {4}}, 30, "both lanes as the canary")
    assert streams.failed == []
    assert streams.answered
    cluster.edit(
        {"routing": {"policy": "FlowGuard"}, "speculation": {"depth": {"min": 1, "max": 6}, "rollout": at_once}}
    )
    cluster.until("ConfigApplied", "True", 10)


def _depths_by_lane(cluster: Cluster) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    with ThreadPoolExecutor(8) as many:
        prompts = [f"Canary number {number}" for number in range(8)]
        answers = list(many.map(lambda prompt: cluster.generate(prompt, "--max-tokens=64", "--ignore-eos"), prompts))
    for chunks in answers:
        found.setdefault(chunks[-1]["route"]["lane"], set()).update(chunks[-1]["usage"]["depths_seen"])
    return found


def test_a_kubelet_that_falls_silent_costs_no_request_and_no_pod(cluster: Cluster) -> None:
    before, there = cluster.makes(), "n2"
    on_it = {pod["metadata"]["name"] for pod in cluster.pods() if pod["spec"]["nodeName"] == there}
    assert on_it & rollouts.workers(before).keys(), "no worker is on that node"
    with cluster.traffic() as traffic:
        with cluster.silent_kubelet(there):
            cluster.wait(lambda: _node_ready(cluster, there) == "Unknown", SILENCE_SECONDS, f"{there} counts as silent")
            said = cluster.until("Ready", "False", 10)
            assert there in said["message"], said
            assert cluster.condition("Available")["status"] == "True"
            time.sleep(10)
        cluster.until("Ready", "True", 60)
    assert traffic.failed == []
    assert traffic.answered > 0
    assert cluster.makes() == before


def _node_ready(cluster: Cluster, node: str) -> str:
    status: str = _condition(cluster.get("node", node), "Ready").get("status", "")
    return status


def test_without_redis_an_edit_arrives_by_the_configmap_and_an_empty_redis_is_filled(cluster: Cluster) -> None:
    before, redis = cluster.makes(), f"deployment/{RELEASE}-redis"
    with cluster.traffic() as traffic:
        cluster.kubectl("scale", redis, "--replicas=0")
        cluster.kubectl("wait", "--for=delete", "pod", "--selector=app.kubernetes.io/component=redis", "--timeout=60s")
        cluster.edit({"speculation": {"depth": {"min": 2, "max": 2}}})
        cluster.until("ConfigApplied", "True", CONFIGMAP_SECONDS)
        cluster.kubectl("scale", redis, "--replicas=1")
        cluster.kubectl("rollout", "status", redis, "--timeout=60s")
        began = time.monotonic()
        cluster.edit({"speculation": {"depth": {"min": 1, "max": 6}}})
        cluster.until("ConfigApplied", "True", 30)
        took = time.monotonic() - began
    assert took <= FILLED_SECONDS
    assert traffic.failed == []
    assert traffic.answered > 0
    assert cluster.makes() == before


def test_a_cold_edit_replaces_one_lane_after_the_other_and_no_request_fails(cluster: Cluster) -> None:
    """Four clients stream all the while, without a pause; what begins while a lane is away goes to the other."""
    before = cluster.makes()
    with cluster.streams() as streams:
        cluster.wait(lambda: len(streams.running) == 4, 30, "four answers are under way")
        began = time.time()
        cluster.edit({"decode": {"engine": {"args": {"max-num-seqs": "32"}}}})
        fewest = rollouts.fewest_lanes_until_replaced(cluster, before)
        ended = time.time()
    assert streams.failed == []
    assert len(streams.answered) >= 8
    assert streams.across(began)
    assert streams.longest_gap(began, ended) <= GAP_SECONDS
    assert {each.lane for each in streams.answered} == {"lane-0", "lane-1"}
    assert fewest >= 1, "one lane of two may be away"


@pytest.mark.parametrize(("edit", "named"), rollouts.BAD.values(), ids=rollouts.BAD)
def test_a_revision_that_cannot_start_stops_after_one_lane_and_undoing_it_recovers(
    cluster: Cluster, edit: Body, named: str
) -> None:
    before, undone = cluster.makes(), rollouts.undone(cluster.pair()["spec"], edit)
    with cluster.traffic() as traffic:
        cluster.edit(edit)
        first = cluster.wait(
            lambda: next((each for each in rollouts.conditions(cluster) if named in each["message"]), None),
            30,
            f"a condition says {named}",
        )
        halted = cluster.until("Progressing", "False", rollouts.HALTED_SECONDS, "RolloutHalted")
        lanes = {rollouts.lane_that_fails(cluster, said["message"], named) for said in (first, halted)}
        assert len(lanes) == 1, "one lane tries it"
        tried = tuple(f"{PAIR}-{role}-{lane}-" for role in ("prefill", "decode") for lane in lanes)
        kept = {name: made for name, made in before.items() if not name.startswith(tried)}
        end = time.monotonic() + rollouts.HELD_SECONDS
        while time.monotonic() < end:
            assert cluster.ready_lanes() == 1
            assert {name: made for name, made in cluster.makes().items() if name in kept} == kept
            time.sleep(1)
        cluster.edit(undone)
        cluster.until("Ready", "True", 240)
    assert traffic.failed == []
    assert traffic.answered > 0
    assert {name: made for name, made in cluster.makes().items() if name in kept} == kept


def test_what_only_the_cluster_knows_becomes_a_condition_within_ten_seconds(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    """GPUs, a claim, a Secret and an image that are not there, and a worker that ends as it starts, at the same time.
    The pair that serves stays as it is."""
    before, names = cluster.makes(), [f"streampair/{name}" for name in wanting.WANTS]
    gone = f"--selector=streamserve.io/pair in ({','.join(wanting.WANTS)})"

    def leave() -> None:
        cluster.try_kubectl("delete", "--ignore-not-found", "--timeout=60s", *names)
        cluster.try_kubectl("wait", "--for=delete", "pod", gone, "--timeout=120s", seconds=130)

    request.addfinalizer(leave)
    cluster.kubectl("apply", "-f", "-", given=wanting.manifests())
    took = wanting.told_after(cluster)
    assert took.keys() == wanting.WANTS.keys()
    assert max(took.values()) <= wanting.TOLD_SECONDS
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.makes() == before


def test_lanes_are_added_and_drained_by_kubectl_scale(cluster: Cluster) -> None:
    """While four clients stream, in turns, for FlowGuard might spare the third lane: it goes when it has just begun to
    answer one of them."""
    cluster.edit({"routing": {"policy": "RoundRobin"}})
    cluster.until("ConfigApplied", "True", 10)
    kept = cluster.makes()
    with cluster.streams(max_tokens=1024) as streams:
        cluster.kubectl("scale", f"streampair/{PAIR}", "--replicas=3")
        cluster.wait(lambda: cluster.ready_lanes() == 3, 120, "three lanes")
        cluster.wait(lambda: "lane-2" in streams.lanes(since=time.time() - 1.0), 60, "the third lane answers")
        began = time.time()
        cluster.kubectl("scale", f"streampair/{PAIR}", "--replicas=2")
        cluster.wait(lambda: len(cluster.pods("decode")) == 2, 120, "two lanes")
    assert streams.failed == []
    assert len(streams.answered) >= 6
    assert streams.across(began, "lane-2"), "none ran there when it was asked to leave"
    assert {name: made for name, made in cluster.makes().items() if name in kept} == kept
    cluster.edit({"routing": {"policy": "FlowGuard"}})
    cluster.until("ConfigApplied", "True", 10)


HPA = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: auto-prefill}
spec:
  scaleTargetRef: {apiVersion: streamserve.io/v1alpha1, kind: StreamPairScaler, name: auto-prefill}
  minReplicas: 1
  maxReplicas: 6
  metrics:
    - type: External
      external: {metric: {name: prefill_busy}, target: {type: AverageValue, averageValue: "10"}}
"""


def test_an_hpa_on_an_external_metric_drives_a_role_and_the_ratio_bounds_it(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    """One replica for each 10 of the metric; the ratio permits two prefill pods for the one decode pod of a lane."""

    def leave() -> None:
        cluster.metric(prefill_busy=None)
        cluster.try_kubectl("delete", "hpa/auto-prefill", "streampair/auto", "--ignore-not-found", "--timeout=60s")
        gone = ["wait", "--for=delete", "pod", "--selector=streamserve.io/pair=auto", "--timeout=120s"]
        cluster.try_kubectl(*gone, seconds=130)

    request.addfinalizer(leave)
    pair = YAML(typ="safe").load(EXAMPLE)
    pair["metadata"]["name"] = "auto"
    pair["spec"] |= {"lanes": 1, "ratio": {"minDecodePerPrefillPercent": 50, "maxDecodePerPrefillPercent": 400}}
    pair["spec"]["prefill"]["scaling"] = {"mode": "External"}
    cluster.kubectl("apply", "-f", "-", given=json.dumps(pair))
    cluster.kubectl("wait", "--for=condition=Ready", "streampair/auto", "--timeout=120s", seconds=130)
    cluster.kubectl("apply", "-f", "-", given=HPA)

    with cluster.streams(max_tokens=64, pair="auto") as streams:
        cluster.metric(prefill_busy="15")
        cluster.wait(lambda: _prefill(cluster) == (2, 2), AUTOSCALED_SECONDS, "two prefill pods serve")
        cluster.metric(prefill_busy="45")
        # An HPA doubles at most, so it asks for 4 first.
        cluster.wait(lambda: _prefill(cluster) == (5, 2), AUTOSCALED_SECONDS, "the HPA asks for five, two serve")
        clamped = cluster.wait(
            lambda: _followed(cluster, "Clamped"), AUTOSCALED_SECONDS, "the scaler says it is clamped"
        )
        assert "5 asked for, 2 taken" in clamped["message"]
        began = time.time()
        cluster.metric(prefill_busy="5")
        cluster.wait(lambda: _prefill(cluster) == (1, 1), AUTOSCALED_SECONDS, "one prefill pod is left")
        left = time.time()
    assert _followed(cluster, "AsAsked")
    assert streams.failed == []
    assert any(began < each.began < left for each in streams.answered), "nobody asked while the pod left"


def _prefill(cluster: Cluster) -> tuple[int, int]:
    """(replicas that the HPA asks for, prefill pods that are Ready and stay)."""
    scaler = cluster.get("streampairscaler", "auto-prefill")
    selector = "--selector=streamserve.io/pair=auto,streamserve.io/role=prefill"
    ready = [
        pod
        for pod in cluster.get("pods", selector)["items"]
        if _condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]
    ]
    return scaler["spec"]["replicas"], len(ready)


def _followed(cluster: Cluster, reason: str) -> Body | None:
    found = _condition(cluster.get("streampairscaler", "auto-prefill"), "Followed")
    return found if found.get("reason") == reason else None


def _condition(body: Body, kind: str) -> Body:
    return next((each for each in body.get("status", {}).get("conditions", ()) if each["type"] == kind), {})


def test_network_policies_let_in_whom_they_should_and_nobody_else(cluster: Cluster) -> None:
    """From a pod that is none of ours, to every port of ours. What ours need of each other the rest of the story shows:
    the policies are enforced from the first step on."""
    (router, *_), (worker, *_) = cluster.pods("router"), cluster.pods("decode")
    redis, operator = _address(cluster, "redis"), _address(cluster, "operator")
    expected = {
        **{f"{router['status']['podIP']}:{port}": True for port in (50051, 50052, 8000, 9090)},
        **{f"{worker['status']['podIP']}:{port}": port == 9090 for port in (50051, 5600, 9090)},
        f"{redis}:6379": False,
        f"{operator}:9090": True,
    }
    said = json.loads(cluster.kubectl("exec", CLIENT, "--", "python3", "-c", client.REACH, *expected))
    assert said == {target: "open" if reached else "silent" for target, reached in expected.items()}


def test_a_prometheus_scrapes_every_pod_of_ours_and_its_rules_have_answers(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With the chart's alerts and the signals that autoscalers are told to use, through the policies."""
    manifests = str(HERE / "prometheus.yaml")

    def leave() -> None:
        what = ["configmap/prometheus", "-f", manifests]
        cluster.try_kubectl("delete", "--ignore-not-found", "--timeout=60s", what[0])
        cluster.try_kubectl("delete", "--ignore-not-found", "--timeout=60s", *what[1:])

    leave()
    request.addfinalizer(leave)
    yaml, targets = YAML(typ="safe"), scraped.targets(cluster)
    yaml.dump(yaml.load(SIGNALS)["spec"], tmp_path / "signals.yaml")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["/etc/prometheus/alerts.yaml", "/etc/prometheus/signals.yaml"],
        "scrape_configs": [{"job_name": "streamserve", "static_configs": targets}],
    }
    yaml.dump(config, tmp_path / "prometheus.yaml")
    files = (CHART / "alerts.yaml", tmp_path / "signals.yaml", tmp_path / "prometheus.yaml")
    cluster.kubectl("create", "configmap", "prometheus", *(f"--from-file={file}" for file in files))
    cluster.kubectl("apply", "-f", manifests)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/prometheus", "--timeout=60s")
    names = {target["labels"]["pod"] for target in targets}
    cluster.wait(lambda: scraped.asked(cluster, "up == 1", "pod") == names, 60, f"{len(names)} targets are up")
    with cluster.traffic():
        lanes = f'streamserve_autoscaling_lanes{{streamserve_io_pair="{PAIR}"}} == 2'
        cluster.wait(
            lambda: scraped.asked(cluster, lanes, "namespace") == {NAMESPACE}, 60, "a signal of autoscaling is there"
        )
        served = "sum by (namespace) (rate(streamserve_router_requests_total[10s])) > 0"
        cluster.wait(lambda: scraped.asked(cluster, served, "namespace") == {NAMESPACE}, 60, "requests are counted")
    rules = [rule for group in scraped.ask(cluster, "/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}


def _address(cluster: Cluster, component: str) -> str:
    selector = f"--selector=app.kubernetes.io/component={component}"
    pods = cluster.get("pods", selector, "--field-selector=status.phase=Running")["items"]
    address: str = pods[0]["status"]["podIP"]
    return address


def test_an_upgrade_that_changes_nothing_touches_no_pod(cluster: Cluster) -> None:
    before = cluster.makes()
    cluster.helm(*INSTALL)
    time.sleep(5)
    assert cluster.makes() == before
    cluster.helm(*INSTALL, "--set=operator.logLevel=Debug")
    cluster.wait(lambda: cluster.condition("Ready").get("status") == "True", 60, "Ready")
    time.sleep(5)
    assert cluster.makes() == before, "a new operator that renders the same pods leaves them alone"
    cluster.helm("rollback", RELEASE, "--wait", "--timeout=3m")
    assert cluster.makes() == before


def test_an_upgrade_that_renders_other_pods_replaces_the_lanes_one_after_another_and_so_does_its_rollback(
    cluster: Cluster,
) -> None:
    """The images are on the nodes, so whether they may be pulled changes the pods and nothing else. Redis, the operator
    and the routers are replaced by the same upgrade."""
    with cluster.traffic() as traffic:
        before = cluster.makes()
        cluster.helm(*INSTALL, "--set=image.pullPolicy=Never")
        fewest = [rollouts.fewest_lanes_until_replaced(cluster, before)]
        upgraded = cluster.makes()
        cluster.helm("rollback", RELEASE, "--wait", "--timeout=3m")
        fewest.append(rollouts.fewest_lanes_until_replaced(cluster, upgraded))
    assert traffic.failed == []
    assert traffic.answered > 0
    assert min(fewest) >= 1, "one lane of two may be away"
    assert rollouts.workers(cluster.makes()).keys() == rollouts.workers(before).keys(), "back to the revision of before"


def test_deleting_it_leaves_nothing_also_while_no_operator_runs(cluster: Cluster) -> None:
    assert _redis_users(cluster) == {"default", "operator", f"{NAMESPACE}.router", f"{NAMESPACE}.worker"}
    cluster.kubectl("scale", f"deployment/{RELEASE}-operator", "--replicas=0")
    cluster.kubectl("delete", "streampair", PAIR, "--timeout=60s")
    kinds = "pods,services,deployments,configmaps,secrets,serviceaccounts,poddisruptionbudgets,streampairscalers"
    mine = f"--selector=streamserve.io/pair={PAIR}"
    cluster.wait(
        lambda: not cluster.get(kinds, mine)["items"],
        120,
        "nothing is left",
        lambda: cluster.kubectl("get", kinds, mine),
    )


def test_the_users_of_redis_go_with_the_last_pair_when_an_operator_is_back(cluster: Cluster) -> None:
    cluster.kubectl("scale", f"deployment/{RELEASE}-operator", "--replicas=2")
    cluster.kubectl("rollout", "status", f"deployment/{RELEASE}-operator", "--timeout=120s", seconds=130)
    cluster.wait(lambda: _redis_users(cluster) == {"default", "operator"}, 60, "Redis has no users of a namespace")


def test_uninstalling_leaves_nothing_but_the_crds(cluster: Cluster) -> None:
    cluster.kubectl("delete", "pod", "client", "--ignore-not-found", "--timeout=60s")
    cluster.helm("uninstall", RELEASE, "--wait", "--timeout=2m")
    leftovers.until_nothing_is_left_but_the_crds(cluster)


def test_the_other_order_leaves_nothing_either(cluster: Cluster) -> None:
    """Installed anew; uninstalled while the pods of a pair start, and the pair deleted after that."""
    cluster.helm(*INSTALL)
    cluster.kubectl("apply", "-f", str(EXAMPLE))
    cluster.wait(lambda: len(cluster.pods("prefill")) == len(cluster.pods("decode")) == 2, 60, "there are pods")
    cluster.helm("uninstall", RELEASE, "--wait", "--timeout=2m")
    assert cluster.pods(), "the pair's pods are not the chart's"
    cluster.kubectl("delete", "streampair", PAIR, "--timeout=60s")
    leftovers.until_nothing_is_left_but_the_crds(cluster)


def _kv_bytes(cluster: Cluster) -> float:
    """What the decode worker has pulled, by its own counter."""
    selector = "--selector=streamserve.io/role=decode"
    (pod,) = json.loads(cluster.kubectl(f"--namespace={ENGINES}", "get", "pods", selector, "-o=json"))["items"]
    path = f"/api/v1/namespaces/{ENGINES}/pods/{pod['metadata']['name']}:9090/proxy/metrics"
    rows = cluster.kubectl("get", "--raw", path).splitlines()
    return sum(
        float(row.rpartition(" ")[2]) for row in rows if row.startswith("streamserve_worker_kv_transfer_bytes_total")
    )


def _redis_users(cluster: Cluster) -> set[str]:
    """As the operator sees them, who is the one that may ask."""
    ask = "import os, redis; print(*redis.from_url(os.environ['STREAMSERVE_REDIS_URL']).acl_users())"
    said = cluster.kubectl("exec", f"deployment/{RELEASE}-operator", "--", "python3", "-c", ask)
    return set(said.split())
