"""Context parallelism over NCCL, where there is more than one GPU: the same attention and gradients as on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_longpo.model.layout import tree_layout
from tests.gpu.measured import Measured
from tests.unit.model.test_attention import AttentionCase, attend_on_ranks, masked_gradients, whole

CASES = [AttentionCase((100, 12, 30), 8, 4, exchange) for exchange in ("p2p", "all_gather", "a2a")]  # without padding


def attend(rank: int, num_ranks: int, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Write this rank's share of [output, dq, dk, dv] of each case."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    results = [[x.float().cpu() for x in found] for found in attend_on_ranks(CASES, dtype, device)]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_equals_masked_attention(tmp_path: Path, device: torch.device, dtype: torch.dtype, measured: Measured) -> None:
    """3e-2: bf16 inputs, probabilities and partial outputs, against float64."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    torch.multiprocessing.spawn(attend, (2, tmp_path, device.type, dtype), nprocs=2)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for index, case in enumerate(CASES):
        layout = tree_layout(case.lengths[0], case.lengths[1:], 2)
        found = [whole(parts, layout) for parts in zip(*(results[index] for results in by_rank), strict=True)]
        true = masked_gradients(case, layout)
        errors = [
            ((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, true, strict=True)
        ]
        names = [f"{case.exchange}: {what}" for what in ("out", "dq", "dk", "dv")]
        measured(dict(zip(names, errors, strict=True)), 3e-2 if dtype is torch.bfloat16 else 1e-5)
