"""What an OpenAI client may send, turned into the one request that the router knows.

Strict in both directions: a name that is not listed here is refused by name, a type that is not exactly right is
refused, nothing is ignored but `user`, which says who asks and not what to generate. Parameters of OpenAI's that this
release does not have are accepted at the value that means "not used" (n = 1, echo = false, null), for some clients
always send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from streamserve.contract import tokens
from streamserve.contract.errors import InvalidRequest
from streamserve.v1 import common_pb2, inference_pb2

# Parameter -> the values that change nothing.
UNUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
}
# The same of a message: what clients' own classes write of an answer that is sent back as the next question's past.
UNUSED_IN_MESSAGE: Final[Mapping[str, tuple[Any, ...]]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
_UINT32: Final = Field(ge=0, lt=2**32)
_Request = TypeVar("_Request", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Common(_Strict):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**32)] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    min_tokens: Annotated[int, _UINT32] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    workload: str | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> common_pb2.SamplingParams:
        names = (
            *("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
            *("seed", "min_tokens", "ignore_eos"),
        )
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        # vLLM's clients write -1 for "every token".
        top_k = None if self.top_k is None else max(0, self.top_k)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return common_pb2.SamplingParams(**given, top_k=top_k, stop=stop, max_tokens=max_tokens, logprobs=logprobs)

    def _message(self, prompt: common_pb2.Prompt, sampling: common_pb2.SamplingParams) -> inference_pb2.GenerateRequest:
        return inference_pb2.GenerateRequest(
            model=self.model or "",
            prompt=prompt,
            sampling=sampling,
            workload=self.workload or "",
            priority=self.priority or 0,
        )


class CompletionRequest(_Common):
    """POST /v1/completions"""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, _UINT32] | None = None

    def to_message(self) -> inference_pb2.GenerateRequest:
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise InvalidRequest(f"{len(prompt)} prompts in one request; send one request for each", field="prompt")
            prompt = prompt[0]
        if isinstance(prompt, str):
            form = common_pb2.Prompt(text=prompt)
        else:
            form = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=tokens.pack(prompt)))
        return self._message(form, self._sampling(self.max_tokens, self.logprobs))


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: str
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_used(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if name not in UNUSED_IN_MESSAGE or (value is not None and value not in UNUSED_IN_MESSAGE[name])
        }

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(_Common):
    """POST /v1/chat/completions"""

    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, _UINT32] | None = None

    def to_message(self) -> inference_pb2.GenerateRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise InvalidRequest(
                f"max_tokens is {both[0]} and max_completion_tokens {both[1]}; send one of them",
                field="max_completion_tokens",
            )
        chat = common_pb2.ChatMessages(
            messages=[common_pb2.ChatMessage(role=message.role, content=message.text) for message in self.messages]
        )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._message(
            common_pb2.Prompt(chat=chat), self._sampling(self.max_completion_tokens or self.max_tokens, logprobs)
        )


def completion(body: bytes) -> CompletionRequest:
    """Raises InvalidRequest naming the parameter."""
    return _read(CompletionRequest, body)


def chat_completion(body: bytes) -> ChatCompletionRequest:
    """Raises InvalidRequest naming the parameter."""
    return _read(ChatCompletionRequest, body)


def _read(kind: type[_Request], body: bytes) -> _Request:
    try:
        document = from_json(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    for name in [name for name in document if name not in kind.model_fields]:
        value = document.pop(name)
        if name not in UNUSED or (value is not None and value not in UNUSED[name]):
            raise InvalidRequest(f"unsupported parameter: {name!r}; leave it out", field=name)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    """The deepest complaint of a union is the one that fits what was sent."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    deepest = max(errors, key=lambda each: len(each["loc"]))
    where = [str(part) for part in deepest["loc"] if isinstance(part, int) or not _is_branch(str(part))]
    field = ".".join(where)
    if deepest["type"] == "extra_forbidden":
        return InvalidRequest(f"unsupported parameter: {field!r}; leave it out", field=field)
    message = deepest["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}" if field else message, field=field or None)


def _is_branch(part: str) -> bool:
    """Pydantic names the branch of a union in the path: `list[int]`, `str`, `TextPart`."""
    return "[" in part or part in ("str", "int", "float", "bool", "TextPart")
