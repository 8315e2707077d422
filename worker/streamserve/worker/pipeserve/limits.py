"""What a model can take: the same refusals for every engine, each naming the field and what to send instead."""

from __future__ import annotations

from collections.abc import Sequence

from streamserve.contract.errors import InvalidRequest
from streamserve.contract.sampling import Sampling


def check_characters(characters: int, *, characters_per_token: int, max_model_tokens: int) -> None:
    """Raises InvalidRequest for a text that is too long however it is cut into tokens, before anyone has cut it.

    No token stands for more characters than the longest entry of the vocabulary has: entries are spelt in characters,
    or in bytes, of which a character has one or more. Where a tokenizer or chat template drops or joins some of them
    first (spaces, accents, an earlier answer's thoughts), more could fit in principle; it takes a text that is nearly
    all of what is dropped. vLLM's own server refuses by the same bound.
    """
    fewest = -(-characters // characters_per_token)
    if fewest >= max_model_tokens:
        raise _too_long(f"at least {fewest}", max_model_tokens)


def check_prompt(token_ids: Sequence[int], *, vocabulary_size: int, max_model_tokens: int) -> None:
    """Raises InvalidRequest for a prompt that is empty, too long or not of this vocabulary."""
    if not token_ids:
        raise InvalidRequest("the prompt is empty; send at least one token", field="prompt")
    if len(token_ids) >= max_model_tokens:
        raise _too_long(str(len(token_ids)), max_model_tokens)
    highest = max(token_ids)
    if highest >= vocabulary_size or min(token_ids) < 0:
        raise InvalidRequest(
            f"token id {highest} is outside the vocabulary; use ids from 0 to {vocabulary_size - 1}",
            field="prompt.token_ids",
        )


def _too_long(tokens: str, max_model_tokens: int) -> InvalidRequest:
    return InvalidRequest(
        f"the prompt has {tokens} tokens, the model takes {max_model_tokens} with its answer; "
        f"send at most {max_model_tokens - 1}",
        field="prompt",
    )


def max_new_tokens(sampling: Sampling, *, prompt_tokens: int, max_model_tokens: int) -> int:
    """How many tokens to generate at most. Raises InvalidRequest when more are asked for than fit."""
    room = max_model_tokens - prompt_tokens
    for name, asked in (("max_tokens", sampling.max_tokens or 0), ("min_tokens", sampling.min_tokens)):
        if asked > room:
            raise InvalidRequest(
                f"{name} is {asked}, but after a prompt of {prompt_tokens} tokens the model has room for {room}; "
                f"ask for at most {room}",
                field=f"sampling.{name}",
            )
    return min(sampling.most_tokens, room)
