"""A stream to a worker that many requests share logs under none of their ids, least of all under that of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.support.log_lines import Lines, logged_by

from streamserve.contract.errors import StreamServeError
from streamserve.router.decode_many import SharedStream
from streamserve.router.worker_client import WorkerClient
from streamserve.runtime import logs
from streamserve.v1 import worker_pb2, worker_pb2_grpc


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged_by("router") as found:
        yield found


class Greeter(worker_pb2_grpc.WorkerServiceServicer):
    """A worker that knows shared streams, and answers one part."""

    async def DecodeMany(self, request_iterator: Any, context: Any) -> Any:
        yield worker_pb2.DecodeManyResponse()
        async for ask in request_iterator:
            message = worker_pb2.DecodeManyResponse()
            message.parts.add(call=ask.start.call, response=b"", ended=True)
            yield message


async def test_what_goes_wrong_on_the_shared_stream_is_not_logged_as_the_first_requests(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SharedStream, raw: bytes) -> None:
        if worker_pb2.DecodeManyResponse.FromString(raw).parts:
            raise RuntimeError("the parts cannot be dealt out")
        deal(self, raw)

    deal = SharedStream._deal
    monkeypatch.setattr(SharedStream, "_deal", broken)
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Greeter(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = WorkerClient(f"127.0.0.1:{port}")
    token = logs.request_id.set("first")
    try:
        stream = client.decode(worker_pb2.DecodeRequest(request_id="first", attempt=1), timeout_seconds=5)
        with pytest.raises(StreamServeError):
            async for _ in stream:
                pass
        logs.get("streamserve.router").warning("a line of the first request")
    finally:
        logs.request_id.reset(token)
        await client.close()
        await server.stop(None)
    died, own = lines()
    assert "the parts cannot be dealt out" in died["message"]
    assert "request_id" not in died
    assert own["request_id"] == "first"
