"""A tree's attention on every kernel that runs here, against float64; and at 131,072 tokens, where indices overflow."""

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longpo.errors import UserError
from megatron_longpo.model.attention import _TreeAttention, tree_attention
from megatron_longpo.model.kernels import Kernel, attend, attend_backward, choose, use_only
from megatron_longpo.model.layout import PackLayout, TreeLayout
from megatron_longpo.model.trunk import TrunkExchange
from tests.gpu.measured import Measured
from tests.unit.model.test_attention import masked_attention, tree_mask

HALF = ("auto", "flash3", "flash4", "cudnn", "flash", "plain")
KERNELS = [(name, torch.bfloat16) for name in HALF] + [("auto", torch.float16)]
KERNELS += [(name, torch.float32) for name in ("plain", "cpu")]
LIMITS = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5}
"""Half precision: the inputs are rounded alike on both sides; a kernel rounds probabilities and the partial outputs, to
8 bits in bf16 and to 11 in fp16."""
HEADS = [(8, 8, 64), (32, 8, 128), (28, 4, 128)]  # with as many keys; Mistral-7B's; Qwen2.5-7B's
LAYOUTS = [
    TreeLayout(517, (64, 33), 0, 2),
    TreeLayout(1, (7, 5), 0, 3),
    TreeLayout(64, (300, 17)),
    TreeLayout(64, (30,)),
    TreeLayout(500, (128, 40), 12, 0),
]


def chosen_kernel(name: str, device: torch.device, dtype: torch.dtype, size: int, queries_per_key: int) -> Kernel:
    use_only(name)
    try:
        return choose(device, dtype, size, queries_per_key)
    except UserError as error:
        pytest.skip(str(error))


def largest_error(found: Any, true: Any) -> float:
    """As part of the largest number."""
    return ((found.cpu().double() - true).abs().max() / true.abs().max()).item()


@pytest.mark.parametrize("heads, groups, size", HEADS)
@pytest.mark.parametrize("name, dtype", KERNELS, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in KERNELS])
def test_equals_masked_attention(
    name: str,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    size: int,
    device: torch.device,
    one_rank: dist.ProcessGroup,
    measured: Measured,
) -> None:
    """The largest error of the output and of the gradients of queries, keys and values."""
    print(f"\n    {chosen_kernel(name, device, dtype, size, heads // groups).name}")
    errors = {}
    for layout in LAYOUTS:
        torch.manual_seed(0)
        real_S1 = tree_mask(layout).any(1)[:, None]
        q, k, v = (torch.randn(1, n, layout.length, size, dtype=dtype) for n in (heads, groups, groups))
        grad = torch.randn(1, heads, layout.length, size, dtype=dtype) * real_S1
        leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
        rest = (PackLayout((layout,)), TrunkExchange(), one_rank, size**-0.5)
        out = _TreeAttention.apply(*leaves, *tree_attention(*leaves, *rest), *rest)
        out.backward(grad.to(device))
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        expected = masked_attention(*exact, tree_mask(layout))
        expected.backward(grad.double())
        found, true = ([result, *(x.grad for x in its)] for result, its in ((out, leaves), (expected, exact)))
        found[0] = out.cpu() * real_S1
        errors[f"{layout.trunk} + {layout.branches}"] = max(map(largest_error, found, true))
    measured(errors, LIMITS[dtype])


@pytest.mark.parametrize("name", ["auto", "flash3", "flash4", "cudnn", "flash"])
def test_at_length(name: str, device: torch.device, dtype: torch.dtype, measured: Measured) -> None:
    """Some rows of the output and of dQ, and some of dV, against fp32 on the same device; and how fast it is."""
    tokens, heads, groups, size = (131_072 if device.type == "cuda" else 1024), 8, 2, 128
    print(f"\n    {chosen_kernel(name, device, dtype, size, heads // groups).name}")
    torch.manual_seed(0)
    shapes = (heads, groups, groups, heads)
    q, k, v, grad = (torch.randn(tokens, 1, n, size, device=device, dtype=dtype).permute(1, 2, 0, 3) for n in shapes)
    seconds = []
    for _ in range(2):  # the first call builds what the kernel keeps
        start = finished(device)
        out, lse = attend(q, k, v, True, 0.1)
        middle = finished(device)
        dq, _, dv = attend_backward(grad, q, k, v, out, lse, True, 0.1)
        seconds = [middle - start, finished(device) - middle]
    rows = torch.linspace(0, tokens - 1, 33, dtype=torch.int64, device=device)
    expected = exact_rows(q, k, v, grad, out, lse, rows)
    found = (out[:, :, rows], dq[:, :, rows], dv[:, :, rows])
    errors = {what: largest_error(*both) for what, *both in zip(("out", "dq", "dv"), found, expected, strict=True)}
    measured(errors, LIMITS[dtype])
    flops = 4 * heads * size * tokens**2 / 2
    speeds = zip(("forward, TFLOP/s", "backward, TFLOP/s"), (1.0, 2.5), seconds, strict=True)
    measured({what: factor * flops / second / 1e12 for what, factor, second in speeds})


def exact_rows(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, out: Tensor, lse: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, dQ, dV) of these tokens, fp32 products on the device, on the CPU in float64.

    dV sums over all queries, for which the kernel's own log-sum-exp is taken: the output proves it.
    """
    repeats, tokens = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    q, k, v, grad, out = (x.float() for x in (q, k, v, grad, out))
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = (q[:, :, rows] @ k.mT * 0.1).masked_fill(tokens > rows[:, None], -torch.inf)
    chances = scores.softmax(-1)
    true_out = chances @ v
    dscores = chances * (grad[:, :, rows] @ v.mT - (grad[:, :, rows] * true_out).sum(-1, keepdim=True)) * 0.1
    later = (q @ k[:, :, rows].mT * 0.1 - lse.unsqueeze(-1)).exp() * (tokens[:, None] >= rows)
    dv = torch.unflatten(later.mT @ grad, 1, (-1, repeats)).sum(2)
    return true_out.cpu().double(), (dscores @ k).cpu().double(), dv.cpu().double()


def finished(device: torch.device) -> float:
    """The time when all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
