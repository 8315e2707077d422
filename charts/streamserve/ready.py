"""Run by `helm test` inside the operator's image. Prints one line a check; the first that fails ends it with 1."""

import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

import redis

TIMEOUT_SECONDS = 10
ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))


def operator_answers() -> str:
    with urllib.request.urlopen(f"{os.environ['OPERATOR']}/readyz", timeout=TIMEOUT_SECONDS) as answer:
        return answer.read().decode().strip()


def redis_takes_us() -> str:
    url = os.environ["STREAMSERVE_REDIS_URL"]
    with redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS) as client:
        client.ping()
    return "ok"


def api_knows_stream_pairs() -> str:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"[{host}]" if ":" in host else host
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"}
    for namespace in os.environ["NAMESPACES"].split():
        path = f"/apis/streamserve.io/v1alpha1/namespaces/{namespace}/streampairs?limit=1"
        request = urllib.request.Request(f"https://{address}:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trust):
            pass
    return "ok"


for check in (operator_answers, redis_takes_us, api_knows_stream_pairs):
    try:
        print(f"{check.__name__}: {check()}", flush=True)
    except (OSError, urllib.error.URLError, redis.RedisError) as error:
        print(f"{check.__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
