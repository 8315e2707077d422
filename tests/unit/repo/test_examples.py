"""The prompts and the tiny pair that ship: complete, well formed, and of the sizes that the demo counts on."""

import json
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

WORKLOADS = ("gsm8k", "humaneval", "alpaca", "sum")
MODELS = ("tiny-target", "tiny-draft")
BLOCK_TOKENS = 128


def prompts(root: Path, workload: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / f"examples/prompts/{workload}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_has_24_different_prompts_with_ids(root: Path, workload: str) -> None:
    items = prompts(root, workload)
    assert [set(item) for item in items] == [{"id", "prompt"}] * 24
    assert len({item["id"] for item in items}) == len({item["prompt"] for item in items}) == 24


def test_a_third_of_the_prompts_is_longer_than_a_kv_block_and_all_fit_the_context(root: Path) -> None:
    tokenizer = Tokenizer.from_file(str(root / "examples/models/tiny-target/tokenizer.json"))
    texts = [item["prompt"] for workload in WORKLOADS for item in prompts(root, workload)]
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    assert sum(length > BLOCK_TOKENS for length in lengths) >= len(lengths) / 3
    assert max(lengths) < 1024


def test_target_and_draft_have_one_vocabulary_and_one_template(root: Path) -> None:
    target, draft = (root / "examples/models" / name for name in MODELS)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (draft / name).read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_renders_as_plain_text(root: Path, model: str) -> None:
    source = (root / "examples/models" / model / "chat_template.jinja").read_text()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And 4?"},
    ]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "Be brief.\n\nUser: 2 + 3?\nAssistant: 5\nUser: And 4?\nAssistant:"
