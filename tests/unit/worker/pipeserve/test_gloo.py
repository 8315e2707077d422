"""Process groups of one share a polling thread, larger ones keep theirs: torch's own gloo, in its own processes."""

import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from streamserve.worker.pipeserve import gloo

SHARE, RANK, RANKS, STORE, ALONE = sys.argv[1] == "share", *map(int, sys.argv[2:4]), sys.argv[4], 5

def polling_threads():
    return sum(comm.read_text().strip() == "gloo_tcp_loop" for comm in Path("/proc/self/task").glob("*/comm"))

if SHARE:
    assert gloo.share_devices() and gloo.share_devices()
dist.init_process_group(
    "gloo", rank=RANK, world_size=RANKS, init_method="file://" + STORE, timeout=timedelta(seconds=30)
)
alone = [dist.new_group([rank]) for rank in range(RANKS) for _ in range(ALONE)][RANK * ALONE :][:ALONE]
for group, members in [(dist.group.WORLD, RANKS), *((group, 1) for group in alone)]:
    ones = torch.ones(3)
    dist.all_reduce(ones, group=group)
    assert ones.tolist() == [members] * 3, ones
    dist.barrier(group=group)
    assert isinstance(group._get_backend(torch.device("cpu")), dist.distributed_c10d.ProcessGroupGloo)
print(polling_threads())
dist.barrier()
"""


def polling_threads(tmp_path: Path, mode: str, ranks: int) -> list[int]:
    script, store = tmp_path / "rank.py", tmp_path / "store"
    script.write_text(RANK)
    running = [
        subprocess.Popen(
            [sys.executable, str(script), mode, str(rank), str(ranks), str(store)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    try:
        return [int(one.communicate(timeout=120)[0]) for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait(5)


@pytest.mark.parametrize(
    ("mode", "ranks", "want"),
    [
        pytest.param("plain", 1, [6], id="as_torch_has_it_a_worker_alone_polls_once_per_group"),
        pytest.param("share", 1, [1], id="sharing_a_worker_alone_polls_once_in_all"),
        pytest.param("share", 2, [2, 2], id="sharing_two_workers_keep_a_device_for_what_they_have_in_common"),
    ],
)
def test_who_polls(mode: str, ranks: int, want: list[int], tmp_path: Path) -> None:
    assert polling_threads(tmp_path, mode, ranks) == want
