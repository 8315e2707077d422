"""Per-request sampling settings spread over draft positions: vLLM's CPU kernel leaves them to what memory held."""

import pytest
import torch

from streamserve.worker.pipeserve.cpu_sampling import expand_batch_to_tokens

CASES = {
    "a request with two drafts, one with three, one with one": (
        [0.5, 1.0, 2.0],
        [2, 5, 6],
        [0.5, 0.5, 1.0, 1.0, 1.0, 2.0],
    ),
    "a request without drafts takes no place": ([0.5, 1.0, 2.0], [2, 2, 3], [0.5, 0.5, 2.0]),
    "greedy requests get the temperature that divides by one": ([0.0, 0.7], [1, 3], [1.0, 0.7, 0.7]),
}


@pytest.mark.parametrize("values, ends, want", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_it_spreads(values: list[float], ends: list[int], want: list[float], dtype: torch.dtype) -> None:
    given = torch.tensor(values).to(dtype)
    got = expand_batch_to_tokens(given, torch.tensor(ends, dtype=torch.int32), ends[-1], 0, 1)
    wanted = torch.tensor(want).to(dtype)
    wanted[wanted == 0] = 1
    assert got.dtype is dtype
    assert torch.equal(got, wanted)
