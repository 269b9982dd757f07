"""Context parallelism over NCCL, where there is more than one GPU: the same log-probs and gradients as on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_longpo.model.layout import tree_layout
from tests.unit.model.test_attention import AttentionCase, attend_on_ranks, masked_gradients, whole

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")

CASES = [AttentionCase((100, 12, 30), 8, 4, exchange) for exchange in ("p2p", "all_gather", "a2a")]  # without padding


def attend(rank: int, num_ranks: int, folder: Path) -> None:
    """Write this rank's share of [output, dq, dk, dv] of each case."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    results = [[x.float().cpu() for x in found] for found in attend_on_ranks(CASES, torch.bfloat16, "cuda")]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_equals_masked_attention(tmp_path: Path) -> None:
    """3e-2: bf16 inputs, probabilities and partial outputs, against float64."""
    torch.multiprocessing.spawn(attend, (2, tmp_path), nprocs=2)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for index, case in enumerate(CASES):
        layout = tree_layout(case.lengths[0], case.lengths[1:], 2)
        found = [whole(parts, layout) for parts in zip(*(results[index] for results in by_rank), strict=True)]
        for ours, theirs in zip(found, masked_gradients(case, layout), strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2 * scale, msg=f"{case}")
