"""What an OpenAI client may send, turned into the one request that the router knows.

Strict in both directions: a name that is not listed here is refused by name, a type that is not exactly right is
refused, nothing is ignored but `user`, which says who asks and not what to generate. Parameters of OpenAI's that this
release does not have are accepted at the value that means "not used" (n = 1, echo = false, null), for some clients
always send them.

A refusal costs no more than an acceptance. Pydantic records an error for each element that does not fit, in each branch
of a union, and a body may hold millions of them: so a list is read up to its first error, no union has two kinds of
list, and of several names that are not known one is complained of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from streamserve.contract import tokens
from streamserve.contract.errors import InvalidRequest
from streamserve.router.fronts.checks import MAX_CHAT_MESSAGES
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
_FIRST_ERROR: Final = Field(fail_fast=True)
_Request = TypeVar("_Request", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    # Other names that are accepted, at these values and null.
    unused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_used(cls, given: Any) -> Any:
        """Of the names that are refused the first stays, to be complained of."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        strange = (name for name in given if name not in known)
        first = next((name for name in strange if not _changes_nothing(given[name], cls.unused.get(name))), None)
        return {name: value for name, value in given.items() if name in known or name == first}


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Common(_Strict):
    unused = UNUSED
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
    stop: str | Annotated[list[str], _FIRST_ERROR] | None = None
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


def _alone(prompt: Any) -> Any:
    """What a list of prompts holds; of several each wants a request of its own."""
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return prompt
    if len(prompt) > 1:
        raise InvalidRequest(f"{len(prompt)} prompts in one request; send one request for each", field="prompt")
    return prompt[0]


class CompletionRequest(_Common):
    """POST /v1/completions"""

    prompt: Annotated[str | Annotated[list[int], _FIRST_ERROR], BeforeValidator(_alone)]
    logprobs: Annotated[int, _UINT32] | None = None

    def to_message(self) -> inference_pb2.GenerateRequest:
        if isinstance(self.prompt, str):
            form = common_pb2.Prompt(text=self.prompt)
        else:
            form = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=tokens.pack(self.prompt)))
        return self._message(form, self._sampling(self.max_tokens, self.logprobs))


def _joined(content: Any) -> Any:
    """The text of a list of parts. By hand: a model for each part costs twenty times as much."""
    if not isinstance(content, list):
        return content
    for number, part in enumerate(content):
        sound = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not sound or len(part) > 2:
            raise ValueError(
                f'part {number} is not text: send {{"type": "text", "text": "..."}} and no other names in it'
            )
    return "".join(part["text"] for part in content)


class Message(_Strict):
    unused = UNUSED_IN_MESSAGE
    role: str
    content: Annotated[str, BeforeValidator(_joined)]


class ChatCompletionRequest(_Common):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(max_length=MAX_CHAT_MESSAGES), _FIRST_ERROR]
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
            messages=[common_pb2.ChatMessage(role=message.role, content=message.content) for message in self.messages]
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
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None


def _changes_nothing(value: Any, unused: tuple[Any, ...] | None) -> bool:
    """By type too: to Python true is 1 and 1.0, and 0 is false."""
    if unused is None or value is None:
        return unused is not None
    return any(type(value) is type(each) and value == each for each in unused)


def _invalid(error: ValidationError) -> InvalidRequest:
    """A name that is not known says most; else the deepest complaint, the one of a union that fits what was sent."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(errors, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"])))
    where = [str(part) for part in first["loc"] if isinstance(part, int) or not _is_branch(str(part))]
    field = ".".join(where)
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unsupported parameter: {field!r}; leave it out", field=field)
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}" if field else message, field=field or None)


def _is_branch(part: str) -> bool:
    """Pydantic names the branch of a union in the path: `list[int]`, `str`."""
    return "[" in part or part in ("str", "int", "float", "bool")
