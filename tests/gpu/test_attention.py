"""The pair's attention on every CUDA kernel that runs here, against float64 on the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longpo.errors import UserError
from megatron_longpo.model.attention import _TreeAttention, tree_attention
from megatron_longpo.model.kernels import NAMES, choose, use_only
from megatron_longpo.model.layout import PackLayout, TreeLayout
from megatron_longpo.model.trunk import TrunkExchange
from tests.unit.model.test_attention import masked_attention, tree_mask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.distributed_c10d._get_default_group()
    dist.destroy_process_group()


TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5}
"""bf16: inputs are bf16 on both sides; a kernel rounds probabilities and the two partial outputs to 8 bits."""


def largest_error(found: Any, true: Any) -> float:
    """As part of the largest number."""
    return ((found.cpu().double() - true).abs().max() / true.abs().max()).item()


@pytest.fixture(autouse=True)
def any_kernel() -> Iterator[None]:
    yield
    use_only("auto")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
@pytest.mark.parametrize("heads, groups", [(8, 8), (8, 2), (28, 4)])
@pytest.mark.parametrize(
    "lengths", [(517, (64, 33), 0, 2), (1, (7, 5), 0, 3), (64, (300, 17), 0, 0), (64, (30,), 0, 0)]
)
def test_equals_masked_attention(
    dtype: torch.dtype, name: str, heads: int, groups: int, lengths: Any, one_rank: dist.ProcessGroup
) -> None:
    use_only(name)
    try:
        chosen = choose(torch.device("cuda", 0), dtype, 64, heads // groups).name
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    layout = TreeLayout(*lengths)
    q, k, v = (torch.randn(1, n, layout.length, 64, dtype=dtype) for n in (heads, groups, groups))
    grad = torch.randn(1, heads, layout.length, 64, dtype=dtype)
    on_gpu = [x.cuda().requires_grad_() for x in (q, k, v)]
    rest = (PackLayout((layout,)), TrunkExchange(), one_rank, 0.125)
    out = _TreeAttention.apply(*on_gpu, *tree_attention(*on_gpu, *rest), *rest)
    out.backward(grad.cuda())
    on_cpu = [x.double().requires_grad_() for x in (q, k, v)]
    expected = masked_attention(*on_cpu, tree_mask(layout))
    expected.backward(grad.double())
    found = {"out": out, **{f"d{name}": leaf.grad for name, leaf in zip("qkv", on_gpu, strict=True)}}
    true = {"out": expected, **{f"d{name}": leaf.grad for name, leaf in zip("qkv", on_cpu, strict=True)}}
    errors = {one: largest_error(found[one], true[one]) for one in true}
    print(chosen, {one: f"{error:.1e}" for one, error in errors.items()}, f"limit {TOLERANCE[dtype]:.0e}")
    assert max(errors.values()) <= TOLERANCE[dtype]
