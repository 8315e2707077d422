"""What vLLM says against a configuration, as one line that names the flag."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from streamserve.runtime.errors import EngineRefused
from streamserve.worker.pipeserve import compat, vllm_check, vllm_config


class SchedulerLike(BaseModel):
    max_num_seqs: int = Field(ge=1)
    max_num_batched_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def together(self) -> SchedulerLike:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be\n   greater than or equal to max_num_seqs")
        return self


def refused(**values: Any) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        SchedulerLike(**values)
    return error.value


def test_a_value_out_of_bounds_is_told_by_its_flag() -> None:
    said = vllm_config.one_line(refused(max_num_seqs=0))
    assert said == "max-num-seqs is 0: input should be greater than or equal to 1"


def test_values_that_do_not_go_together_are_told_in_vllms_words_on_one_line() -> None:
    said = vllm_config.one_line(refused(max_num_seqs=8, max_num_batched_tokens=4))
    assert said == "max_num_batched_tokens must be greater than or equal to max_num_seqs"


def test_any_other_error_is_cut_to_a_readable_length() -> None:
    assert vllm_config.one_line(ValueError()) == "ValueError"
    assert len(vllm_config.one_line(ValueError("far too much " * 100))) == 400


def test_only_what_vllm_says_about_values_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: Exception) -> Any:
        def configuration(_: Any) -> Any:
            raise error

        return configuration

    monkeypatch.setattr(compat, "configuration", raises(ValueError("no such dtype")))
    with pytest.raises(EngineRefused, match="no such dtype"):
        vllm_config.judged(None)
    monkeypatch.setattr(compat, "configuration", raises(ConnectionError("the hub is away")))
    with pytest.raises(ConnectionError):
        vllm_config.judged(None)


@dataclass(frozen=True)
class Shape:
    heads: int
    size: int = 64
    dtype: str = "float16"

    def get_total_num_kv_heads(self) -> int:
        return self.heads

    def get_head_size(self) -> int:
        return self.size


@pytest.mark.parametrize(
    ("version", "draft", "refused"),
    [
        ("0.26.0", Shape(heads=2), True),
        ("0.26.0", Shape(heads=4, size=32), True),
        ("0.26.0", Shape(heads=4), False),
        ("0.26.0", None, False),
        ("0.32.0", Shape(heads=2), False),
    ],
    ids=["other heads", "another head size", "one shape", "no draft model", "a vLLM that can"],
)
def test_a_pair_whose_kv_this_vllm_cannot_hand_over_is_refused_with_both_shapes(
    version: str, draft: Shape | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(
        model_config=Shape(heads=4),
        speculative_config=SimpleNamespace(method="draft_model", draft_model_config=draft),
        cache_config=SimpleNamespace(cache_dtype="auto"),
    )
    monkeypatch.setattr(compat, "version", lambda: version)
    monkeypatch.setattr(compat, "configuration", lambda _: config)
    if not refused:
        assert vllm_config.judged(None) is config
        return
    with pytest.raises(EngineRefused, match=r"the target has 4 KV heads x 64 \(float16\), the draft . KV heads x"):
        vllm_config.judged(None)


def test_the_check_reads_the_flags_that_a_worker_is_started_with() -> None:
    flags = ["--role", "decode", "--engine", "Vllm", "--model", "/m", "--method", "DraftModel", "--max-depth", "4"]
    found = vllm_check.settings([*flags, "--draft", "/d", "--engine-args", '{"max-num-seqs": 16}'])
    assert found == vllm_config.EngineSettings(
        role="decode", model="/m", draft="/d", method="DraftModel", max_depth=4, engine_args={"max-num-seqs": "16"}
    )
