"""The pair's attention equals two separate masked attentions, forward and backward."""

import pytest
import torch
from torch import Tensor

from megatron_longpo.model.attention import _PairAttention
from megatron_longpo.model.layout import PairLayout


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Plain softmax attention with a boolean mask, float64: [1, H, S, D]; keys repeated for grouped queries."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1).nan_to_num() @ v


def pair_mask(layout: PairLayout) -> Tensor:
    """bool [S, S]: written from the words, token by token, not from slices."""
    part = ["t"] * layout.trunk + ["c"] * layout.chosen + ["r"] * layout.rejected + ["p"] * layout.padding
    allowed = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for i, mine in enumerate(part):
        for j, other in enumerate(part[: i + 1]):
            allowed[i, j] = mine != "p" and (other == mine or (other == "t" and mine in "cr"))
    return allowed


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (7, 1)])
@pytest.mark.parametrize("lengths", [(33, 7, 5, 0), (1, 1, 1, 1), (5, 40, 2, 3), (64, 1, 17, 6)])
def test_equals_masked_attention(heads: int, groups: int, lengths: tuple[int, ...]) -> None:
    """1e-5: fp32 kernels against float64; sums of at most 112 terms."""
    torch.manual_seed(0)
    layout = PairLayout(*lengths)
    q, k, v = (torch.randn(1, n, layout.length, 16, requires_grad=True) for n in (heads, groups, groups))
    grad = torch.randn(1, heads, layout.length, 16)
    out = _PairAttention.apply(q, k, v, layout, 16**-0.5)
    out.backward(grad)
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
    expected = masked_attention(q64, k64, v64, pair_mask(layout))
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((q, k, v), (q64, k64, v64), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_branches_do_not_see_each_other() -> None:
    """Changing one branch leaves the trunk and the other branch bit for bit."""
    torch.manual_seed(0)
    layout = PairLayout(20, 6, 9)
    q, k, v = (torch.randn(1, 2, layout.length, 8) for _ in range(3))
    before = _PairAttention.apply(q, k, v, layout, 0.3)
    chosen, rejected = layout.branch_slices
    for x in (q, k, v):
        x[:, :, chosen] = torch.randn_like(x[:, :, chosen])
    after = _PairAttention.apply(q, k, v, layout, 0.3)
    assert torch.equal(before[:, :, layout.trunk_slice], after[:, :, layout.trunk_slice])
    assert torch.equal(before[:, :, rejected], after[:, :, rejected])
    assert not torch.equal(before[:, :, chosen], after[:, :, chosen])
