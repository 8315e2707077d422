"""The two ways to ask: StreamServe's gRPC, and OpenAI's completions over HTTP with server-sent events.

`generate` yields None for each message with tokens, the moment it is there, and at the end the number of tokens.
Both do as little as they can on each message, for they share the machine with what they measure.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import grpc

from benchkit.results import BenchError
from streamserve.contract import tokens as tokens_contract
from streamserve.runtime.grpc import CHANNEL_OPTIONS
from streamserve.v1 import common_pb2, inference_pb2


class GrpcClient:
    """InferenceService.Generate; one channel for all. With `tokenize` prompts go out as token ids."""

    def __init__(self, address: str, tokenize: Callable[[str], Sequence[int]] | None = None) -> None:
        self._tokenize = tokenize
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._call: Any = self._channel.unary_stream(
            "/streamserve.v1.InferenceService/Generate",
            request_serializer=inference_pb2.GenerateRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateResponse.FromString,
        )

    async def generate(self, slot: int, prompt: str, tokens: int) -> AsyncGenerator[int | None, None]:
        ids = None if self._tokenize is None else tokens_contract.pack(self._tokenize(prompt))
        request = inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(text=prompt) if ids is None else common_pb2.Prompt(token_ids={"ids_le32": ids}),
            sampling=common_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
        )
        call = self._call(request, timeout=120)
        total = 0
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.token_ids:
                    total += len(message.token_ids)
                    yield None
        except grpc.aio.AioRpcError as error:
            raise BenchError(f"Generate failed: {error.code().name}: {error.details()}") from None
        yield total

    async def close(self) -> None:
        await self._channel.close()


class HttpClient:
    """POST /v1/completions with stream; each of the loop's clients keeps one connection."""

    def __init__(self, address: str, model: str) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._model = model
        self._connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def generate(self, slot: int, prompt: str, tokens: int) -> AsyncGenerator[int | None, None]:
        # A server closes what was idle for some seconds.
        if slot not in self._connections or self._connections[slot][0].at_eof():
            self._connections[slot] = await asyncio.open_connection(self._host, self._port, limit=2**20)
        reader, writer = self._connections[slot]
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        writer.write(request_bytes("/v1/completions", json.dumps(body).encode()))
        status = await read_head(reader)
        if status != 200:
            raise BenchError(f"HTTP {status}: {(await reader.read(2_000)).decode(errors='replace')}")
        usage = b""
        while (line := await reader.readline()) != b"0\r\n":
            if not line:
                raise BenchError("the server closed the stream before its end")
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line:
                usage = line
            elif b'"error"' in line[:20]:
                raise BenchError(f"the stream ended with {line.decode(errors='replace')[:500]}")
            else:
                yield None
        await reader.readline()
        if not usage:
            raise BenchError("the stream has no usage")
        yield int(json.loads(usage[6:])["usage"]["completion_tokens"])

    async def close(self) -> None:
        for _, writer in self._connections.values():
            writer.close()
        self._connections.clear()


def request_bytes(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_head(reader: asyncio.StreamReader) -> int:
    """The status of a response; its headers are read and left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise BenchError("the server closed the connection without an answer") from None
    return int(head.split(b" ", 2)[1])
