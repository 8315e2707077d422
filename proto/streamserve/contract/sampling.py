"""What a client may ask of sampling, checked once, at the front door, for gRPC and OpenAI alike.

Bounds are those of sampling in `common.proto`. What is not in this record is not supported and is refused by name by
the front that met it; nothing is ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from streamserve.contract.errors import InvalidRequest
from streamserve.v1 import common_pb2

DEFAULT_MAX_TOKENS: Final = 256
# vLLM samples with 0.01 where it is asked for less, and says so in its log alone.
MIN_TEMPERATURE: Final = 0.01
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_LOGPROBS: Final = 20
MAX_WORKLOAD_CHARACTERS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Checked sampling parameters; `max_tokens` None means the default, or what the model's length leaves."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False

    @property
    def most_tokens(self) -> int:
        """What is generated at most, where the model's length leaves as much. The default is never below min_tokens."""
        return max(DEFAULT_MAX_TOKENS, self.min_tokens) if self.max_tokens is None else self.max_tokens

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 2.0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise _refused(
                "temperature",
                f"temperature is {self.temperature}; use 0 for greedy decoding, or at least {MIN_TEMPERATURE:g}",
            )
        _within("top_p", self.top_p, 0.0, 1.0, above=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 2.0, above=True)
        if self.top_k < 0:
            raise _refused("top_k", f"top_k is {self.top_k}; use 0 for all tokens, or a positive count")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refused("max_tokens", f"max_tokens is {self.max_tokens}; ask for at least 1 token")
        if self.min_tokens < 0:
            raise _refused("min_tokens", f"min_tokens is {self.min_tokens}; use 0 or more")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refused("min_tokens", f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _refused("stop", f"{len(self.stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed")
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise _refused("stop", f"a stop string has {len(text)} characters; use 1 to {MAX_STOP_CHARACTERS}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _refused("logprobs", f"logprobs is {self.logprobs}; use 0 to {MAX_LOGPROBS}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise _refused("seed", "seed must fit a signed 64-bit integer")


def _within(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
        return
    bounds = f"{'above' if above else 'from'} {low:g} to {high:g}"
    raise _refused(field, f"{field} is {value:g}; use a number {bounds}")


def _refused(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, field=f"sampling.{field}")


def from_proto(message: common_pb2.SamplingParams) -> Sampling:
    """The checked form of the wire message. Raises InvalidRequest naming the field."""
    given: dict[str, object] = {field.name: value for field, value in message.ListFields()}
    given["stop"] = tuple(message.stop)
    return Sampling(**given)  # type: ignore[arg-type]


def to_proto(sampling: Sampling) -> common_pb2.SamplingParams:
    """The wire message that reads back as `sampling`."""
    message = common_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        stop=sampling.stop,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
    )
    if sampling.seed is not None:
        message.seed = sampling.seed
    if sampling.logprobs is not None:
        message.logprobs = sampling.logprobs
    if sampling.max_tokens is not None:
        message.max_tokens = sampling.max_tokens
    return message
