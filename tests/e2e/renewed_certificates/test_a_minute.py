"""Certificates that live for 60 s, renewed at 40 s as the operator does it, under real processes and a stream that runs
through it all."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psutil
import pytest
from tests.support.calls import Answer, generate_async, request
from tests.support.certificates import as_flags
from tests.support.leaves import Mounted, Signer
from tests.support.processes import SPECULATION, LocalFleet

from streamserve.operator import certificates
from streamserve.operator.certificates import Keep, Reason, Renew
from streamserve.runtime import grpc as transport
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import worker_pb2, worker_pb2_grpc
from streamserve.worker.pipeserve.simulated_tokens import encode, expected_token

LIFE = timedelta(seconds=60)
SECOND = timedelta(seconds=1)
STEP_SECONDS = 0.2
PROMPT = "a prompt that moves at least one block of KV"


class Bench:
    """One lane and a router with the pods' certificate, a client with its own; all of them from now on for 60 s."""

    def __init__(self, folder: Path) -> None:
        self.began = datetime.now(UTC).replace(microsecond=0)
        self.signer = Signer(begins=self.began - 3_600 * SECOND, ends=self.began + 3_600 * SECOND)
        self.pods, self.client = (
            Mounted(folder / name, self.signer, self.signer.leaf(begins=self.began, life=LIFE))
            for name in ("pods", "client")
        )
        # What nobody replaces: the folders to which the links pointed first.
        self.old_pods, self.old_client = (
            TlsFiles(*(folder / name / "..1" / entry for entry in ("ca.crt", "tls.crt", "tls.key")))
            for name in ("pods", "client")
        )
        flags = as_flags(self.pods.files)
        self.fleet = LocalFleet(
            folder,
            lanes=1,
            worker_arguments=(*SPECULATION, *flags),
            router_arguments=flags,
            engine_arguments={
                "simulator-step-seconds": str(STEP_SECONDS),
                "simulator-acceptance": "[0, 0, 0, 0, 0, 0]",
            },
        )

    @property
    def worker(self) -> str:
        return self.fleet["lane-0-decode-0"].ready["grpc"]

    def connections(self) -> set[int]:
        """The router's ports of its connections to the decode worker."""
        port = int(self.worker.rpartition(":")[2])
        found = psutil.Process(self.fleet.router.pid).net_connections("tcp")
        return {
            each.laddr.port for each in found if each.raddr and each.raddr.port == port and each.status == "ESTABLISHED"
        }

    def renew(self) -> None:
        now = datetime.now(UTC)
        for mounted in (self.pods, self.client):
            old = mounted.files.certificate.read_bytes()
            assert certificates.decide(old, self.signer.authority, now) == Renew(Reason.TWO_THIRDS)
            made = certificates.successor(old, self.signer.authority, now)
            mounted.replace((made.certificate, made.key))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    with made.fleet:
        yield made


async def test_a_stream_and_new_connections_survive_the_end_of_the_certificates_that_they_began_with(
    bench: Bench,
) -> None:
    due, expired = bench.began + 40 * SECOND, bench.began + 61 * SECOND
    first = bench.pods.files.certificate.read_bytes()
    assert certificates.decide(first, bench.signer.authority, datetime.now(UTC)) == Keep(due)
    tokens = math.ceil(((expired - datetime.now(UTC)).total_seconds() + 3.0) / STEP_SECONDS)
    async with transport.channel(bench.fleet.grpc, bench.client.files) as channel:
        answer = Answer()
        message = request(PROMPT, max_tokens=tokens, ignore_eos=True)
        stream = asyncio.create_task(generate_async(channel, message, timeout=150, answer=answer))
        await until(lambda: answer.token_ids, seconds=20)
        before = bench.connections()
        assert before
        await reached(due)
        bench.renew()
        await reached(expired)

        assert not stream.done(), "it has to run past the end"
        assert not await is_taken(bench.fleet.grpc, bench.old_client), "the client's first certificate has expired"
        assert not await is_taken(bench.worker, bench.old_pods), "and the pods'"
        assert await is_taken(bench.fleet.grpc, bench.client.files)
        assert await is_taken(bench.worker, bench.pods.files)
        async with transport.channel(bench.fleet.grpc, bench.client.files) as fresh:
            short = await generate_async(fresh, request(PROMPT, max_tokens=3, ignore_eos=True))
        assert short.error is None
        assert short.token_ids == expected(3)
        assert bench.connections() - before, "the router has dialled the worker anew"
        assert bench.connections() & before, "the stream's connection has stayed"

        await stream
    assert answer.error is None
    assert answer.token_ids == expected(tokens)
    assert {chunk.attempt for chunk in answer.chunks} == {1}
    await until(lambda: not bench.connections() & before, seconds=10)


def expected(count: int) -> list[int]:
    ids = encode(PROMPT, 4_096)
    return [expected_token(ids, position) for position in range(count)]


async def reached(moment: datetime) -> None:
    await asyncio.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


async def until(condition: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def is_taken(address: str, files: TlsFiles) -> bool:
    """Whether a handshake succeeds: the peer then answers, if only that it does not know the call."""
    async with transport.channel(address, files) as channel:
        try:
            await worker_pb2_grpc.WorkerServiceStub(channel).GetState(worker_pb2.GetStateRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return True
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return True
