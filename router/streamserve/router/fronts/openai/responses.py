"""Answers in OpenAI's shapes: whole, as stream events, and as errors.

A token in `logprobs` is written as the worker's engine says it, and "token_id:123" where the engine does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamserve.contract.errors import StreamServeError
from streamserve.runtime.status import http_status
from streamserve.v1 import common_pb2, inference_pb2

_FINISH: Final = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
}
_KINDS: Final = {401: "authentication_error", 429: "rate_limit_error"}
DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """One answer that grows by chunks. `chat` chooses between the two shapes."""

    chat: bool
    id: str
    model: str
    created: int
    text: list[str] = field(default_factory=list)
    logprobs: list[common_pb2.TokenLogprobs] = field(default_factory=list)
    finish: str | None = None
    usage: common_pb2.Usage | None = None
    _told: int = 0

    def add(self, chunk: inference_pb2.GenerateResponse) -> None:
        if chunk.text:
            self.text.append(chunk.text)
        self.logprobs.extend(chunk.logprobs)
        self._end(chunk)

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        text = "".join(self.text)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish, "logprobs": self._logprobs(self.logprobs)}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        body = self._head("chat.completion" if self.chat else "text_completion")
        body |= {"choices": [choice], "usage": usage(self.usage)}
        return _json(body)

    def opening(self, include_usage: bool) -> bytes:
        """The event that tells a chat client the role; completions have none."""
        if not self.chat:
            return b""
        return self._event({"role": "assistant", "content": ""}, "", None, (), include_usage)

    def event(self, chunk: inference_pb2.GenerateResponse, include_usage: bool) -> bytes:
        """The event of one chunk; nothing for a chunk whose text is still to come."""
        self._end(chunk)
        finish = _FINISH.get(chunk.finish_reason)
        if not chunk.text and not chunk.logprobs and finish is None:
            return b""
        delta = {"content": chunk.text} if chunk.text else {}
        return self._event(delta, chunk.text, finish, chunk.logprobs, include_usage)

    def usage_event(self) -> bytes:
        body = self._head("chat.completion.chunk" if self.chat else "text_completion")
        return _event(body | {"choices": [], "usage": usage(self.usage)})

    def _end(self, chunk: inference_pb2.GenerateResponse) -> None:
        if chunk.finish_reason:
            self.finish = _FINISH.get(chunk.finish_reason)
            self.usage = chunk.usage

    def _event(
        self,
        delta: dict[str, str],
        text: str,
        finish: str | None,
        logprobs: Sequence[common_pb2.TokenLogprobs],
        include_usage: bool,
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": self._logprobs(logprobs)}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = text
        body = self._head("chat.completion.chunk" if self.chat else "text_completion") | {"choices": [choice]}
        if include_usage:
            body["usage"] = None
        return _event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, rows: Sequence[common_pb2.TokenLogprobs]) -> dict[str, Any] | None:
        if not rows:
            return None
        if self.chat:
            return {"content": [_chat_row(row) for row in rows], "refusal": None}
        return {
            "tokens": [_name(row) for row in rows],
            "token_logprobs": [_number(row.logprob) for row in rows],
            "top_logprobs": [{_name(top): _number(top.logprob) for top in row.top} for row in rows],
            "text_offset": [self._offset_of(row) for row in rows],
        }

    def _offset_of(self, row: common_pb2.TokenLogprobs) -> int:
        """Where its text begins in the answer, in characters."""
        offset = self._told
        self._told += len(row.text)
        return offset


def usage(counted: common_pb2.Usage | None) -> dict[str, Any]:
    """OpenAI's usage, with what is ours beside it."""
    counted = counted or common_pb2.Usage()
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_prompt_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": counted.accepted_tokens,
            "rejected_prediction_tokens": max(0, counted.drafted_tokens - counted.accepted_tokens),
        },
    }


def error_body(error: StreamServeError, status: int | None = None) -> bytes:
    status = status or http_status(error)
    kind = _KINDS.get(status, "invalid_request_error" if status < 499 else "server_error")
    body = {"message": error.message, "type": kind, "param": _param(error.field), "code": error.reason.lower()}
    return _json({"error": body})


_OURS: Final = {"prompt.text": "prompt", "prompt.token_ids": "prompt", "prompt.chat": "messages"}


def _param(field: str | None) -> str | None:
    """A field of GenerateRequest by the name that it has here; what the client wrote stays as it is."""
    return None if field is None else _OURS.get(field, field.removeprefix("sampling."))


def error_event(error: StreamServeError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def retry_after(error: StreamServeError) -> str | None:
    """Whole seconds, as the header wants them."""
    return None if error.retry_after_seconds is None else str(max(1, math.ceil(error.retry_after_seconds)))


def models(names: Sequence[str], created: int) -> bytes:
    rows = [{"id": name, "object": "model", "created": created, "owned_by": "streamserve"} for name in names]
    return _json({"object": "list", "data": rows})


def _chat_row(row: common_pb2.TokenLogprobs) -> dict[str, Any]:
    return _row(row) | {"top_logprobs": [_row(each) for each in row.top]}


def _row(token: common_pb2.TokenLogprobs | common_pb2.TopLogprob) -> dict[str, Any]:
    written = list(token.text.encode()) if token.HasField("text") else None
    return {"token": _name(token), "logprob": _number(token.logprob), "bytes": written}


def _name(token: common_pb2.TokenLogprobs | common_pb2.TopLogprob) -> str:
    return token.text if token.HasField("text") else f"token_id:{token.token_id}"


def _number(value: float) -> float:
    """JSON has no infinities; -9999 is what others send for "impossible"."""
    return value if math.isfinite(value) else -9999.0


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _json(body) + b"\n\n"


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
