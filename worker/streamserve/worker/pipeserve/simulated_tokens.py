"""The simulator's language: which token stands at a position, and how text becomes ids and back.

    token(prompt, position) = 256 + splitmix64(blake2b64(prompt) + position) mod (vocabulary - 256)

Every position's token is a function of the prompt and the position alone, so a test can check each one wherever and
however often it was computed. Ids below 256 are the bytes of UTF-8; every other id is an invented word of consonants
and vowels with a space in front. `decode(encode(text)) == text` for any text. A vocabulary of 256 or less has bytes
only.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

BYTES: Final = 256
_MASK: Final = 2**64 - 1
_CONSONANTS: Final = "bdfgklmnprstvz"
_VOWELS: Final = "aeiou"
_SYLLABLES: Final = tuple(c + v for c in _CONSONANTS for v in _VOWELS)
_WORD: Final = re.compile(r" [a-z]{4,}")
_INDEX: Final = {syllable: index for index, syllable in enumerate(_SYLLABLES)}


def expected_token(prompt_ids: Sequence[int], position: int, vocabulary_size: int = 4_096) -> int:
    """The token that every simulated engine generates at `position` (0 is the first new one) after this prompt."""
    return token_at(prompt_seed(prompt_ids), position, vocabulary_size)


def prompt_seed(prompt_ids: Sequence[int]) -> int:
    """The part of `expected_token` that need be computed once for each prompt."""
    return int.from_bytes(blake2b(array("I", prompt_ids).tobytes(), digest_size=8).digest(), "little")


def token_at(seed: int, position: int, vocabulary_size: int) -> int:
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    if vocabulary_size <= BYTES:
        return x % vocabulary_size
    return BYTES + x % (vocabulary_size - BYTES)


def word(token_id: int) -> str:
    """The word of an id above the bytes: at least two syllables, most significant first."""
    number = token_id - BYTES
    syllables: list[str] = []
    while number or len(syllables) < 2:
        number, index = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[index])
    return " " + "".join(reversed(syllables))


def encode(text: str, vocabulary_size: int) -> list[int]:
    """Known words become their id, everything else its bytes (folded into a vocabulary smaller than 256)."""
    ids: list[int] = []
    at = 0
    for match in _WORD.finditer(text):
        token_id = _word_id(match.group(), vocabulary_size)
        if token_id is not None:
            ids.extend(text[at : match.start()].encode())
            ids.append(token_id)
            at = match.end()
    ids.extend(text[at:].encode())
    return ids if vocabulary_size >= BYTES else [i % vocabulary_size for i in ids]


def _word_id(text: str, vocabulary_size: int) -> int | None:
    letters = text[1:]
    if len(letters) % 2:
        return None
    number = 0
    for at in range(0, len(letters), 2):
        index = _INDEX.get(letters[at : at + 2])
        if index is None:
            return None
        number = number * len(_SYLLABLES) + index
    token_id = BYTES + number
    return token_id if token_id < vocabulary_size and word(token_id) == text else None


def decode(token_ids: Iterable[int]) -> str:
    """Text of these ids; bytes that are no UTF-8 become the replacement character."""
    out = bytearray()
    for token_id in token_ids:
        if token_id < BYTES:
            out.append(token_id)
        else:
            out.extend(word(token_id).encode())
    return out.decode(errors="replace")


def render_chat(messages: Iterable[tuple[str, str]]) -> str:
    """One line for each message, then the assistant's turn."""
    return "".join(f"{role}: {content}\n" for role, content in messages) + "assistant:"
