"""A router with TLS and clients without a certificate: a token lets them in, nothing else does."""

from __future__ import annotations

import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from cryptography import x509
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from tests.support.certificates import Authority, as_flags
from tests.support.processes import Process, default_config, wait_until

from streamserve.contract import runtime_config
from streamserve.router import config
from streamserve.runtime.errors import SetupError
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc

TOKEN = "one-of-the-tokens-of-a-test"
# Looked at once per second, on a machine that may be busy.
TAKEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Door:
    """A router alone, which serves nobody but answers, and what its clients hold."""

    ready: dict[str, str]
    tokens: Path
    server: TlsFiles
    client: TlsFiles
    stranger: TlsFiles
    authority: Authority

    @property
    def http(self) -> str:
        return f"https://{self.ready['http']}/v1"

    def channel(self, *, certificate: bool = False, at: str = "token_grpc") -> grpc.Channel:
        files = self.client
        own = (files.key.read_bytes(), files.certificate.read_bytes()) if certificate else ()
        return grpc.secure_channel(self.ready[at], grpc.ssl_channel_credentials(files.ca.read_bytes(), *own))

    def context(self, files: TlsFiles | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.client.ca))
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        return context


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    authority = Authority(folder)
    server, client = authority.issue("router"), authority.issue("client")
    stranger = Authority(folder, "another authority").issue("stranger")
    tokens, ready = folder / "tokens", folder / "ready.json"
    tokens.mkdir()
    (tokens / "anna").write_text(TOKEN)
    (folder / "config.json").write_bytes(runtime_config.encode(default_config("u")))
    (folder / "fleet.json").write_text('{"workers": []}')
    command = (
        *(sys.executable, "-m", "streamserve.router", "--namespace", "local", "--pair", "tiny", "--pair-uid", "u"),
        *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-grpc", "127.0.0.1:0"),
        *("--metrics", "127.0.0.1:0", "--client-tokens", str(tokens), "--config", str(folder / "config.json")),
        *("--fleet", str(folder / "fleet.json"), "--ready-file", str(ready), "--die-with-parent", *as_flags(server)),
    )
    process = Process("router", command, folder, ready_file=ready)
    try:
        yield Door(process.start().wait_ready().ready, tokens, server, client, stranger, authority)
    finally:
        process.kill()


def outcome(call: Any) -> tuple[str, str]:
    """(status, ErrorInfo reason) of a call that is ended."""
    try:
        call()
    except grpc.RpcError as error:
        rich = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        if rich is not None:
            rich.details[0].Unpack(info)
        return error.code().name, info.reason
    return "OK", ""


HEADERS = {
    "nothing": ((), ("UNAUTHENTICATED", "NO_TOKEN")),
    "another scheme": ((("authorization", f"Basic {TOKEN}"),), ("UNAUTHENTICATED", "NO_TOKEN")),
    "a token that is not known": ((("authorization", f"Bearer {TOKEN}s"),), ("UNAUTHENTICATED", "UNKNOWN_TOKEN")),
    "a known token": ((("authorization", f"Bearer {TOKEN}"),), ("OK", "")),
}


@pytest.mark.parametrize(("metadata", "wanted"), HEADERS.values(), ids=HEADERS)
def test_a_grpc_call_shows(metadata: Any, wanted: tuple[str, str], door: Door) -> None:
    with door.channel() as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        fleet = outcome(lambda: admin.GetFleet(admin_pb2.GetFleetRequest(), metadata=metadata, timeout=10))
        request = inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(text="hi"))
        generate = inference_pb2_grpc.InferenceServiceStub(channel).Generate
        answer = outcome(lambda: list(generate(request, metadata=metadata, timeout=10)))
    assert fleet == wanted
    # Who is let in is told that there is no lane.
    assert answer == (("UNAVAILABLE", "NO_WORKER") if wanted[0] == "OK" else wanted)


def test_the_health_check_is_open_and_reflection_is_not(door: Door) -> None:
    with door.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        assert outcome(lambda: list(ask(iter([question]), timeout=10))) == ("UNAUTHENTICATED", "NO_TOKEN")


def test_the_port_for_certificates_takes_no_token(door: Door) -> None:
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    for certificate, code in ((False, "UNAVAILABLE"), (True, "OK")):
        with door.channel(certificate=certificate, at="grpc") as channel:
            admin = admin_pb2_grpc.AdminServiceStub(channel)
            call = outcome(lambda: admin.GetFleet(admin_pb2.GetFleetRequest(), metadata=metadata, timeout=10))  # noqa: B023
        assert call[0] == code


def test_the_openai_api_refuses_in_openais_shape_and_counts(door: Door) -> None:
    before = turned_away(door, "http")
    with httpx.Client(verify=door.context()) as http:
        for key, code in (("nobody-knows-this-token", "unknown_token"), (TOKEN + "s", "unknown_token")):
            client = openai.OpenAI(base_url=door.http, api_key=key, max_retries=0, http_client=http)
            with pytest.raises(openai.AuthenticationError, match="not known") as refused:
                client.models.list()
            assert (refused.value.code, refused.value.type) == (code, "authentication_error")
        bare = http.post(f"{door.http}/chat/completions", content=b"{")
        assert (bare.status_code, bare.json()["error"]["code"]) == (401, "no_token")
        assert bare.headers["www-authenticate"].startswith("Bearer")
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        socket = http.get(f"{door.http}/models", headers={**upgrade, "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="})
        assert socket.status_code == 401, "asking for another protocol is no way in"
        known = openai.OpenAI(base_url=door.http, api_key=TOKEN, max_retries=0, http_client=http)
        assert [model.id for model in known.models.list()] == ["tiny"]
    assert turned_away(door, "http") == before + 4


def test_the_openai_api_takes_a_certificate_and_only_of_the_authority(door: Door) -> None:
    with httpx.Client(verify=door.context(door.client)) as http:
        assert http.get(f"{door.http}/models").status_code == 200
    with httpx.Client(verify=door.context(door.stranger)) as http, pytest.raises(httpx.TransportError):
        http.get(f"{door.http}/models")


def test_a_token_counts_soon_after_it_is_written_and_no_longer_than_it_is_there(door: Door) -> None:
    late = "this-one-comes-while-it-runs"

    def status() -> int:
        with httpx.Client(verify=door.context(), headers={"authorization": f"Bearer {late}"}) as http:
            return http.get(f"{door.http}/models").status_code

    assert status() == 401
    (door.tokens / "bert").write_text(late)
    wait_until(lambda: status() == 200, seconds=TAKEN_SECONDS, what="the new token is taken")
    (door.tokens / "bert").unlink()
    wait_until(lambda: status() == 401, seconds=TAKEN_SECONDS, what="the token is refused again")


def test_the_http_port_serves_a_certificate_that_was_replaced_and_no_broken_one(door: Door) -> None:
    host, _, port = door.ready["http"].rpartition(":")

    def serial() -> int:
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number

    first = serial()
    key = door.server.key.read_bytes()
    door.server.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    wait_until(lambda: "keeps its certificate" in _log(door), seconds=TAKEN_SECONDS, what="the log names it")
    assert serial() == first
    door.server.key.write_bytes(key)
    renewed = door.authority.issue("router").certificate
    wanted = x509.load_pem_x509_certificate(renewed.read_bytes()).serial_number
    assert wanted != first
    wait_until(lambda: serial() == wanted, seconds=TAKEN_SECONDS, what="the new certificate is served")


def test_the_commands_take_a_token_from_a_file(door: Door, tmp_path: Path) -> None:
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    known.write_text(TOKEN + "\n")
    unknown.write_text("nobody-knows-this-token")
    at_token = ("--server", door.ready["token_grpc"], "--tls-ca", str(door.client.ca))
    done = run("top", "--once", "--json", *at_token, "--token-file", str(known))
    assert (done.returncode, '"lanes": []' in done.stdout) == (0, True), done.stderr
    done = run("top", "--once", *at_token, "--token-file", str(unknown))
    assert (done.returncode, "UNAUTHENTICATED" in done.stderr) == (1, True), done.stderr
    at_mutual = ("--server", door.ready["grpc"], "--tls-ca", str(door.client.ca))
    done = run("top", "--once", *at_mutual, "--token-file", str(known))
    assert (done.returncode, "tokens are for the router's token port" in done.stderr) == (1, True), done.stderr
    done = run("top", "--once", *at_token, "--token-file", str(tmp_path / "none"))
    assert (done.returncode, "cannot read --token-file" in done.stderr) == (2, True), done.stderr
    done = run("top", "--once", "--token-file", str(known), "--tls-key", str(known))
    assert (done.returncode, "leave --tls-certificate and --tls-key out" in done.stderr) == (2, True), done.stderr


REFUSED = {
    "tokens in the clear": (("--client-tokens", "/t"), "needs TLS"),
    "a port for tokens that are nowhere": (("--token-grpc", "127.0.0.1:0"), "say with --client-tokens"),
    "an address that is none": (("--token-grpc", "here"), "is no address"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_a_router_refuses_to_start_with(words: tuple[str, ...], said: str) -> None:
    required = ("--namespace", "n", "--pair", "p", "--pair-uid", "u", "--config", "c")
    with pytest.raises(SetupError, match=said):
        config.parse((*required, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *words))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "streamserve.cli.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def turned_away(door: Door, front: str) -> float:
    with urllib.request.urlopen(f"http://{door.ready['metrics']}/metrics", timeout=10) as answer:
        rows = answer.read().decode().splitlines()
    name = f'streamserve_router_unauthenticated_total{{front="{front}"}} '
    return sum(float(row.removeprefix(name)) for row in rows if row.startswith(name))


def _log(door: Door) -> str:
    return (door.tokens.parent / "router.log").read_text()
