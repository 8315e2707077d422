"""What a model has room for, whichever engine runs it."""

from __future__ import annotations

import pytest

from streamserve.contract.errors import InvalidRequest
from streamserve.contract.sampling import Sampling
from streamserve.worker.pipeserve import limits

ROOM = {
    "the default": (Sampling(), 100, 256),
    "the default where less is left": (Sampling(), 8_100, 92),
    "the default is never below what is asked for at least": (Sampling(min_tokens=300), 100, 300),
    "as much at least as is left": (Sampling(min_tokens=92), 8_100, 92),
    "what was asked for": (Sampling(max_tokens=40, min_tokens=40), 8_100, 40),
}


@pytest.mark.parametrize(("sampling", "prompt", "want"), ROOM.values(), ids=ROOM.keys())
def test_so_many_tokens_are_made_at_most(sampling: Sampling, prompt: int, want: int) -> None:
    assert limits.max_new_tokens(sampling, prompt_tokens=prompt, max_model_tokens=8_192) == want


def test_a_text_that_no_tokenizer_could_make_short_enough_is_refused_as_a_prompt_with_too_many_tokens() -> None:
    limits.check_characters(7 * 4, characters_per_token=4, max_model_tokens=8)
    with pytest.raises(InvalidRequest) as early:
        limits.check_characters(7 * 4 + 1, characters_per_token=4, max_model_tokens=8)
    with pytest.raises(InvalidRequest) as counted:
        limits.check_prompt([1] * 8, vocabulary_size=2, max_model_tokens=8)
    assert early.value.message == counted.value.message.replace("has 8", "has at least 8")
    assert early.value.field == counted.value.field == "prompt"


REFUSED = {
    "more at most than is left": (Sampling(max_tokens=93), "sampling.max_tokens", "max_tokens is 93"),
    "more at least than is left": (Sampling(min_tokens=100), "sampling.min_tokens", "min_tokens is 100"),
}


@pytest.mark.parametrize(("sampling", "field", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_the_field_that_asks_for_it(sampling: Sampling, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        limits.max_new_tokens(sampling, prompt_tokens=8_100, max_model_tokens=8_192)
    assert raised.value.field == field
    assert raised.value.message.endswith("ask for at most 92")
