"""One request in vLLM's terms, and vLLM's answers in ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from streamserve.contract.errors import InvalidRequest, TransferFailed
from streamserve.contract.sampling import Sampling
from streamserve.worker.pipeserve.engine import ChatPrompt, FinishReason, Logprob, Logprobs, Prompt, TextPrompt

_HANDLE_VERSION: Final = 1
_TO_BE_PULLED: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_NO_SEED: Final = -1
FINISH_REASONS: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def token_ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    """The prompt's tokens, by the model's own tokenizer and chat template."""
    if isinstance(prompt, TextPrompt):
        return list(tokenizer.encode(prompt.text))
    if isinstance(prompt, ChatPrompt):
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        try:
            ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        except Exception as error:
            raise InvalidRequest(
                f"the model's chat template does not take these messages: {error}; "
                "send text or token ids, or other roles",
                field="prompt.chat",
            ) from None
        return list(ids)
    return list(prompt.token_ids)


def characters(prompt: Prompt) -> int:
    """Of the text that is to be cut into tokens; 0 for tokens."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, ChatPrompt):
        return sum(len(role) + len(content) for role, content in prompt.messages)
    return 0


def characters_per_token(tokenizer: Any) -> int:
    """The length of the longest entry of the vocabulary, special tokens too."""
    return max(map(len, tokenizer.get_vocab()))


def answer_params(sampling: Sampling, *, max_tokens: int, speculative: bool, handle: bytes = b"") -> Any:
    """SamplingParams for an answer; with `handle` the prompt's KV is pulled from another engine."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if speculative and sampling.min_p > 0:
        raise InvalidRequest(
            "min_p does not work with speculative decoding; leave it out, or use a model served without speculation",
            field="sampling.min_p",
        )
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=seed_of(sampling.seed),
        stop=list(sampling.stop) or None,
        logprobs=sampling.logprobs,
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": unpack(handle)} if handle else None,
    )


def seed_of(seed: int | None) -> int | None:
    """The seed as vLLM takes it: any signed 64-bit integer as it is, but for -1, which vLLM reads as "no seed".

    -1 becomes 2^63 - 1, whose lower 63 bits are the same: an answer repeats under -1 as under any other seed.
    """
    return 2**63 - 1 if seed == _NO_SEED else seed


def prefill_params() -> Any:
    """SamplingParams that compute a prompt and hold its KV; the one token they sample is thrown away."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"kv_transfer_params": dict(_TO_BE_PULLED)},
    )


def pack(parameters: dict[str, Any]) -> bytes:
    """vLLM's kv_transfer_params as a handle that may cross processes."""
    return json.dumps({"version": _HANDLE_VERSION, "vllm": parameters}).encode()


def unpack(handle: bytes) -> dict[str, Any]:
    """Raises TransferFailed for bytes that are no handle of this engine's kind."""
    try:
        values = json.loads(handle)
        if values["version"] == _HANDLE_VERSION and isinstance(values["vllm"], dict):
            parameters: dict[str, Any] = values["vllm"]
            return parameters
    except (ValueError, KeyError, TypeError):
        pass
    raise TransferFailed("the KV handle is not one of a vLLM engine of this version; prefill the prompt again")


def logprobs_of(ids: Sequence[int], entries: Any, *, count: int | None) -> tuple[Logprobs, ...]:
    """vLLM's {token id: Logprob} of each position as ours: the sampled token, then the `count` most likely ones.

    vLLM puts the sampled token among the most likely ones wherever it ranks, so an entry may hold `count` + 1 tokens.
    """
    if not entries or count is None:
        return ()
    positions = []
    for token_id, entry in zip(ids, entries, strict=False):
        ranked = sorted(entry.items(), key=lambda item: item[1].rank)[:count]
        top = tuple(_logprob(i, one) for i, one in ranked)
        positions.append(Logprobs(sampled=_logprob(token_id, entry[token_id]), top=top))
    return tuple(positions)


def _logprob(token_id: int, one: Any) -> Logprob:
    return Logprob(token_id=int(token_id), logprob=float(one.logprob), text=one.decoded_token)
