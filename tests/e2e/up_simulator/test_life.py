"""Start, refusals, death and the end: nothing stays behind, and what dies comes back."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

import grpc
import pytest

from streamserve.v1 import common_pb2, inference_pb2, inference_pb2_grpc


def test_ctrl_c_stops_everything_and_leaves_nothing(up: Any) -> None:
    up.start()
    run_dir, ports = up.ready["run_dir"], [up.ready[key] for key in ("grpc", "http", "redis")]
    began = time.monotonic()
    assert up.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 30
    assert up.processes() == []
    assert not os.path.exists(run_dir)
    assert not up.ready_file.exists()
    for port in ports:
        host, _, number = port.rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(number))) != 0


def test_a_ready_file_that_cannot_be_removed_keeps_nothing_from_its_orderly_end(up: Any) -> None:
    up.start("--lanes", "1")
    run_dir = up.ready["run_dir"]
    up.ready_file.unlink()
    up.ready_file.mkdir()
    assert up.stop(signal.SIGTERM) == 0
    assert up.processes() == []
    assert not os.path.exists(run_dir)
    assert up.lines()[-1].endswith("stopping: router, workers, Redis (again to stop at once)")


def test_a_stream_that_does_not_end_is_cut_by_the_router_and_not_with_it(up: Any) -> None:
    up.file.write_text(up.file.read_text().replace('max-model-len: "2048"', 'max-model-len: "32768"'))
    up.start("--lanes", "1")
    sampling = common_pb2.SamplingParams(max_tokens=30_000, ignore_eos=True)
    request = inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(text="Once"), sampling=sampling)
    with grpc.insecure_channel(up.ready["grpc"]) as channel:
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, timeout=3_000)
        next(stream)
        up.process.send_signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as cut:
            for _ in stream:
                pass
    assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Socket closed" not in cut.value.details(), "the router was killed"
    assert up.process.wait(30) == 0


def test_kill_9_of_up_leaves_nothing_after_five_seconds(up: Any) -> None:
    up.start()
    assert len(up.processes()) == 8  # up, reaper, Redis, router, two lanes
    os.kill(up.pid, signal.SIGKILL)
    assert up.process is not None
    up.process.wait(5)
    deadline = time.monotonic() + 5
    while up.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert up.processes() == []


def test_a_second_ctrl_c_is_quicker(up: Any) -> None:
    up.start()
    for worker in ("lane-0-prefill-0", "lane-0-decode-0", "lane-1-prefill-0", "lane-1-decode-0"):
        up.find(f"--id {worker}").suspend()
    up.process.send_signal(signal.SIGINT)
    up.line("stopping")
    began = time.monotonic()
    assert up.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 8
    assert up.processes() == []


KINDS = {
    "router": ("streamserve.router",),
    "Redis": ("redis-server",),
    "a prefill": ("--id lane-0-prefill-0",),
    "a decode": ("--id lane-1-decode-0",),
    "the reaper": ("streamserve.cli.up.reaper",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_killed_comes_back(kind: str, shared: Any, cli: Any) -> None:
    victim = shared.find(*KINDS[kind])
    victim.kill()
    shared.until(lambda: victim not in shared.processes(), 5, "its death")

    def healed() -> bool:
        alive = shared.with_words(*KINDS[kind])
        return bool(alive) and alive[0].pid != victim.pid and shared.workers_up() == 4 and shared.all_ready(2)

    shared.until(healed, 40, f"{kind} and two lanes")
    assert cli("generate", "--server", shared.ready["grpc"], "--max-tokens", "4", "Hello").returncode == 0
    before = shared.toggle("localPrefillMaxTokens: 0 ", "localPrefillMaxTokens: 1 ")
    shared.line("applied generation", "on 5 of 5", after=before, seconds=20)


REFUSALS = {
    "a port in use": (["--grpc", "{busy}"], "is in use"),
    "an address that is none": (["--http", "8000"], "--http: '8000' is no address: write host:port"),
    "Redis that cannot be reached": (["--redis", "redis://127.0.0.1:1"], "Redis at 127.0.0.1:1 cannot be reached"),
    "too many lanes": (["--lanes", "257"], "--lanes 257 is not between 0 and 256"),
    "too little memory": (["--lanes", "200", "--engine", "Vllm"], "too little memory for 200 lanes"),
    "a folder for the ready file": (["--ready-file", "/tmp"], "--ready-file: /tmp is a folder: name a file in it"),
    "a Redis URL that the workers would not take": (["--redis", "redis://h:1/x"], "its database is not a number"),
    "no folder for the ready file": (["--ready-file", "/nowhere/ready.json"], "there is no folder /nowhere"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_work_is_refused_before_anything_starts(name: str, up: Any) -> None:
    options, said = REFUSALS[name]
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        up.start(*(option.format(busy=address) for option in options), ready=False)
        assert up.process.wait(20) == 2
    assert len(up.lines()) == 1
    assert up.lines()[0].startswith("streamserve: ")
    assert said in up.lines()[0]


def test_a_file_with_mistakes_is_refused_with_every_one(up: Any) -> None:
    text = up.file.read_text().replace("lanes: 2 ", "lanes: two ").replace("maxDepth: 6 ", "maxDeep: 6 ")
    up.file.write_text(text)
    up.start(ready=False)
    assert up.process.wait(20) == 2
    said = "\n".join(up.lines())
    assert "spec.lanes: must be a whole number" in said
    assert "spec.speculation.maxDeep: unknown field (did you mean" in said
    assert all(":" in line for line in up.lines())


def test_a_missing_model_folder_is_refused(up: Any) -> None:
    up.file.write_text(up.file.read_text().replace("models/tiny-draft", "models/tiny-nothing"))
    up.start(ready=False)
    assert up.process.wait(20) == 2
    assert "tiny-nothing" in "\n".join(up.lines())


def test_engine_arguments_that_no_start_would_mend_stop_up_with_the_flag_named(up: Any) -> None:
    up.file.write_text(up.file.read_text().replace("max-num-seqs:", "max-num-seq:"))
    up.start(ready=False)
    assert up.process.wait(60) == 2
    assert up.lines()[-1].startswith(f"streamserve: {up.file}: spec.engine.args: the simulator has no engine argument")
    assert up.lines()[-1].endswith("max-num-seq; did you mean max-num-seqs?")
    assert up.processes() == []


def test_an_external_redis_is_used_and_left_alone_by_sigterm(up: Any, shared: Any) -> None:
    with open(shared.ready["redis_url_file"]) as file:
        url = file.read()
    up.file.write_text(up.file.read_text().replace("name: tiny  ", "name: second"))
    up.start("--redis", url, "--lanes", "1")
    assert up.ready["redis"] == shared.ready["redis"]
    assert not up.with_words("redis-server")
    assert up.stop(signal.SIGTERM) == 0
    assert up.processes() == []
    assert shared.find("redis-server").is_running()
