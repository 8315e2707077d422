"""The one seam between the worker's server and whatever computes tokens.

Two engines stand behind it: vLLM (`vllm_engine.py`) and the simulator (`simulator.py`). The server knows neither. An
engine does one role of a lane: it computes prompts and holds their KV, or pulls KV and decodes. Errors are those of
the contract's tree: InvalidRequest for what the model cannot take, TransferFailed when KV did not arrive, WorkerLost
when the engine died, everything else InternalError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from streamserve.contract.runtime_config import ConfigId, SpeculationConfig
from streamserve.contract.sampling import Sampling


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """(role, content) in order."""

    messages: tuple[tuple[str, str], ...]


Prompt = TokenPrompt | TextPrompt | ChatPrompt


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """Size of the KV cache: `bytes_per_block` counts keys and values of every layer, target and draft."""

    block_tokens: int
    bytes_per_block: int
    total_blocks: int
    target_layers: int
    draft_layers: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What does not change while the engine runs."""

    kind: str
    version: str
    vocabulary_size: int
    max_model_tokens: int
    max_running_requests: int
    max_depth: int
    kv: KvGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request on this engine. `request_id` is unique per attempt here (the server appends the attempt)."""

    request_id: str
    prompt: Prompt
    sampling: Sampling
    workload: str = "default"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """A computed prompt whose KV waits to be pulled. `kv_handle` is opaque and may cross processes."""

    prompt_token_ids: Sequence[int]
    kv_handle: bytes
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """Of one token. `text` is what it adds to the text before it; None: the engine does not say."""

    token_id: int
    logprob: float
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """One position: the sampled token, then the most likely ones."""

    sampled: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known when a request ends. Depths, drafts and transferred bytes are the scheduler's own record of this
    request; where `recorded` is false there was none, and they are 0 for want of it."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    depths_seen_mask: int = 0
    kv_transfer_bytes: int = 0
    recorded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens that became final together. `outcome` is set on the last chunk only."""

    first_token_index: int
    token_ids: Sequence[int]
    text: str = ""
    logprobs: tuple[Logprobs, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """The engine now. Cheap to take (no await, no IPC): it is read up to twenty times a second."""

    alive: bool
    running_requests: int = 0
    waiting_requests: int = 0
    waiting_prompt_tokens: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    depth: int = 0
    depth_histogram: tuple[int, ...] = ()
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    # Per position, in a recent window: (drafted, accepted).
    positions: tuple[tuple[int, int], ...] = ()
    mean_emitted_tokens_per_step: float = 0.0
    step_base_seconds: float = 0.0
    step_per_request_seconds: float = 0.0
    prefill_tokens_per_second: float = 0.0
    transfer_bytes_per_second: float = 0.0
    kv_bytes_received: int = 0
    kv_transfers_received: int = 0
    kv_transfers_failed: int = 0
    # Sum over pulled transfers of blocks x bytes_per_block.
    kv_bytes_expected: int = 0
    speculation_fallback: str = ""
    death: str = ""


@dataclass(frozen=True, slots=True)
class Adopted:
    """The scheduler has taken over this configuration; no later step uses an older bound."""

    id: ConfigId
    step_count: int = field(default=0)


class Engine(Protocol):
    """One role of one lane. Every method may be called from the server's event loop only."""

    @property
    def info(self) -> EngineInfo: ...

    def snapshot(self) -> EngineSnapshot: ...

    async def prefill(self, job: Job) -> Prefilled:
        """Compute the prompt, hold its KV for one pull (within the engine's lease), and drop the sampled token."""
        ...

    def generate(self, job: Job, *, kv_handle: bytes = b"", cached_prompt_tokens: int = 0) -> AsyncIterator[Chunk]:
        """Stream every position from 0. With `kv_handle` the prompt's KV is pulled, else it is computed here.

        Also serves one-token requests on a prefill engine. Closing the iterator aborts the request.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End the request and free its blocks, a held prefill's too. Unknown ids are ignored."""
        ...

    async def configure(self, id: ConfigId, speculation: SpeculationConfig) -> Adopted:
        """Return once the scheduler has adopted it. Raises InvalidRequest when the engine cannot (depth too deep)."""
        ...

    async def stop(self) -> None:
        """Free everything; nothing of the engine runs afterwards. Idempotent."""
        ...
