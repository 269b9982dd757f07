"""The pair's attention on torch's CUDA kernels, against float64 on the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longpo.model.attention import _TreeAttention, tree_attention
from megatron_longpo.model.layout import PackLayout, TreeLayout
from megatron_longpo.model.trunk import TrunkExchange
from tests.unit.model.test_attention import masked_attention, tree_mask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.distributed_c10d._get_default_group()
    dist.destroy_process_group()


@pytest.mark.parametrize("heads, groups", [(8, 8), (8, 2), (28, 4)])
@pytest.mark.parametrize(
    "lengths", [(517, (64, 33), 0, 2), (1, (7, 5), 0, 3), (64, (300, 17), 0, 0), (64, (30,), 0, 0)]
)
def test_bf16_equals_masked_attention(heads: int, groups: int, lengths: Any, one_rank: dist.ProcessGroup) -> None:
    """2e-2: inputs are bf16 on both sides; the kernel rounds probabilities and the two partial outputs to 8 bits."""
    torch.manual_seed(0)
    layout = TreeLayout(*lengths)
    q, k, v = (torch.randn(1, n, layout.length, 64, dtype=torch.bfloat16) for n in (heads, groups, groups))
    grad = torch.randn(1, heads, layout.length, 64, dtype=torch.bfloat16)
    on_gpu = [x.cuda().requires_grad_() for x in (q, k, v)]
    rest = (PackLayout((layout,)), TrunkExchange(), one_rank, 0.125)
    out = _TreeAttention.apply(*on_gpu, *tree_attention(*on_gpu, *rest), *rest)
    out.backward(grad.cuda())
    on_cpu = [x.double().requires_grad_() for x in (q, k, v)]
    expected = masked_attention(*on_cpu, tree_mask(layout))
    expected.backward(grad.double())
    torch.testing.assert_close(out.cpu().double(), expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=2e-2, atol=2e-2 * scale)
