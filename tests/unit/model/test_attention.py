"""The pair's attention equals two separate masked attentions, forward and backward, under every context parallelism."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longpo.model.attention import TreeAttention, _TreeAttention, tree_attention, tree_params, trunk_exchange
from megatron_longpo.model.layout import PackLayout, TreeLayout, pack_layout, tree_layout
from megatron_longpo.model.tree_tokens import rank_tokens
from tests.ranks import run_ranks

DIM = 16


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Plain softmax attention with a boolean mask, float64: [1, H, S, D]; keys repeated for grouped queries."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1).nan_to_num() @ v


def tree_mask(layout: TreeLayout) -> Tensor:
    """bool [S, S]: written from the words, token by token, not from slices."""
    part = ["t"] * layout.trunk + ["-"] * layout.trunk_padding
    part += [str(branch) for branch, length in enumerate(layout.branches) for _ in range(length)]
    part += ["-"] * layout.branch_padding
    allowed = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for i, mine in enumerate(part):
        for j, other in enumerate(part[: i + 1]):
            allowed[i, j] = mine != "-" and other in (mine, "t")
    return allowed


@dataclass(frozen=True)
class AttentionCase:
    lengths: tuple[int, ...]
    """Trunk, then one branch or more."""
    heads: int = 4
    groups: int = 2
    exchange: str = "p2p"

    def layout(self, cp_size: int) -> TreeLayout:
        return tree_layout(self.lengths[0], self.lengths[1:], cp_size)

    def tensors(self, layout: TreeLayout) -> list[Tensor]:
        """Random q, k, v and the gradient of the output, [1, heads, S, D]; nothing asks for the output of padding."""
        generator = torch.Generator().manual_seed(sum(self.lengths))
        sizes = (self.heads, self.groups, self.groups, self.heads)
        q, k, v, grad = (torch.randn(1, n, layout.length, DIM, generator=generator) for n in sizes)
        return [q, k, v, grad * tree_mask(layout).any(1)[:, None]]


LENGTHS = [(33, 7, 5), (1, 1, 1), (5, 40, 2), (64, 1, 17), (97, 12, 30), (41, 9), (20, 3, 8, 6)]
"""Trees of two branches, of one and of three; among them trunks shorter than two chunks a rank, and branches longer
than a rank's part of the trunk."""


def cases(num_ranks: int) -> list[AttentionCase]:
    heads = {1: [(4, 4), (4, 2), (7, 1)], 2: [(4, 2)], 4: [(8, 4)], 8: [(28, 4)]}[num_ranks]
    found = [AttentionCase(lengths, *counts) for lengths in LENGTHS for counts in heads]
    if num_ranks > 1:
        found += [AttentionCase(lengths, *heads[0], "all_gather") for lengths in LENGTHS]
        found += [AttentionCase(lengths, 2 * num_ranks, num_ranks, "a2a") for lengths in LENGTHS[::2]]
    if num_ranks > 2:
        found += [AttentionCase(lengths, 4, 2, "a2a+p2p") for lengths in LENGTHS[::2]]
    return found


def attend_on_ranks(
    cases: list[AttentionCase], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[list[Tensor]]:
    """On every rank: its share of [output, dq, dk, dv] for each case."""
    size = torch.distributed.get_world_size()
    hierarchy = [2, size // 2] if size > 2 else None
    parallel_state.initialize_model_parallel(context_parallel_size=size, hierarchical_context_parallel_sizes=hierarchy)
    groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
    results = []
    for case in cases:
        layout = case.layout(size)
        own = rank_tokens(layout, groups.cp.rank())
        q, k, v, grad = (x[:, :, own].clone().to(device, dtype) for x in case.tensors(layout))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        rest = (pack_layout([layout]), trunk_exchange(case.exchange, groups), groups.cp, DIM**-0.5)
        out = _TreeAttention.apply(*leaves, *tree_attention(*leaves, *rest), *rest)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in leaves)])
    return results


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_equals_masked_attention(num_ranks: int) -> None:
    """1e-5: fp32 kernels against float64; sums of at most 141 terms."""
    by_rank = run_ranks(attend_on_ranks, num_ranks, cases(num_ranks))
    for index, case in enumerate(cases(num_ranks)):
        layout = case.layout(num_ranks)
        real = tree_mask(layout).any(1)
        expected = masked_gradients(case, layout)
        found = [whole(parts, layout) for parts in zip(*(results[index] for results in by_rank), strict=True)]
        expected[0][:, :, ~real] = found[0][:, :, ~real] = 0.0  # what padding attends to is of no consequence
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=f"{case}")


def masked_gradients(case: AttentionCase, layout: TreeLayout) -> list[Tensor]:
    """[output, dq, dk, dv] of the whole sequence, float64."""
    q, k, v, grad = (x.double() for x in case.tensors(layout))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = masked_attention(*leaves, tree_mask(layout))
    out.backward(grad)
    return [out.detach(), *(x.grad for x in leaves)]  # type: ignore[misc]


def whole(parts: tuple[Tensor, ...], layout: TreeLayout) -> Tensor:
    """The ranks' shares put together: [1, heads, S, D] float64."""
    joined = torch.zeros(1, parts[0].shape[1], layout.length, DIM, dtype=torch.float64)
    for rank, part in enumerate(parts):
        joined[:, :, rank_tokens(layout, rank)] = part.double()
    return joined


def test_branches_do_not_see_each_other() -> None:
    """Changing one branch leaves the trunk and the other branch bit for bit, as does leaving both out the trunk."""
    before, after, trunk_only = run_ranks(attend_thrice, 1)[0]
    layout = TreeLayout(20, (6, 9))
    chosen, rejected = layout.branch_slices
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert torch.equal(before[:, :, rejected], after[:, :, rejected])
    assert not torch.equal(before[:, :, chosen], after[:, :, chosen])
    assert torch.equal(before[:, :, :20], trunk_only)


def attend_thrice() -> list[Tensor]:
    """Outputs with one chosen branch, with another, and of the trunk in a kernel call of its own."""
    parallel_state.initialize_model_parallel()
    groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
    torch.manual_seed(0)
    layout = TreeLayout(20, (6, 9))
    q, k, v = (torch.randn(1, 2, layout.length, 8) for _ in range(3))
    rest = (pack_layout([layout]), trunk_exchange(None, groups), groups.cp, 0.3)
    outputs = [tree_attention(q, k, v, *rest)[0]]
    for x in (q, k, v):
        x[:, :, layout.branch_slices[0]] = torch.randn(1, 2, 6, 8)
    outputs.append(tree_attention(q, k, v, *rest)[0])
    trunk = (x[:, :, :20] for x in (q, k, v))
    outputs.append(torch.nn.functional.scaled_dot_product_attention(*trunk, is_causal=True, scale=0.3))
    return outputs


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_a_pack_is_its_trees(num_ranks: int) -> None:
    """Three pairs in one micro-batch: each one's output and gradients are those it has alone, bit for bit."""
    for packed, alone in run_ranks(attend_packed_and_alone, num_ranks):
        for ours, theirs in zip(packed, alone, strict=True):
            assert torch.equal(ours, theirs)


def attend_packed_and_alone() -> tuple[list[Tensor], list[Tensor]]:
    """This rank's [output, dq, dk, dv] of three pairs in one micro-batch, and of each alone, put together."""
    size = torch.distributed.get_world_size()
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
    torch.manual_seed(groups.cp.rank())
    layout = pack_layout([tree_layout(lengths[0], lengths[1:], size) for lengths in LENGTHS[:3]], multiple=16)
    tensors = [torch.randn(1, heads, layout.length, DIM) for heads in (4, 2, 2, 4)]
    exchange = trunk_exchange("p2p", groups)

    def attend(layout: PackLayout, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        rest = (layout, exchange, groups.cp, 0.3)
        out = _TreeAttention.apply(*leaves, *tree_attention(*leaves, *rest), *rest)
        out.backward(grad)
        return [out.detach(), *(x.grad for x in leaves)]  # type: ignore[misc]

    packed = attend(layout, *tensors)
    each = [
        attend(pack_layout([pair]), *(x[:, :, part] for x in tensors))
        for pair, part in zip(layout.trees, layout.parts, strict=True)
    ]
    tail = [x.new_zeros(1, x.shape[1], layout.tail, DIM) for x in packed]
    assert layout.tail > 0
    return packed, [torch.cat(parts, 2) for parts in zip(*each, tail, strict=True)]


def saved_bytes() -> dict[str, tuple[int, int]]:
    """Of each tensor that attention keeps for its backward pass: (bytes it has, bytes that it keeps alive)."""
    parallel_state.initialize_model_parallel()
    config: Any = TransformerConfig(num_layers=1, hidden_size=4 * DIM, num_attention_heads=4, num_query_groups=2)
    config.attention_dropout = 0.0
    core = TreeAttention(config, 1, AttnMaskType.causal, "self")
    layout = pack_layout([tree_layout(40, (5, 3), 1)])
    mixed = torch.randn(layout.length, 1, 8, DIM, requires_grad=True)  # as Megatron's linear_qkv gives them
    query, key, value = (x.contiguous() if x.shape[2] == 4 else x for x in torch.split(mixed, [4, 2, 2], 2))
    params = tree_params(layout, torch.zeros(layout.length))
    node = core(query, key.contiguous(), value, None, packed_seq_params=params).grad_fn
    while node.name() != "_TreeAttentionBackward":
        node = node.next_functions[0][0]
    names = ("query", "key", "value", "output", "log-sum-exp")
    sizes = [(x.numel() * 4, x.untyped_storage().nbytes()) for x in node.saved_tensors]
    return dict(zip(names, sizes, strict=True))


def test_nothing_more_is_kept_than_what_backward_reads() -> None:
    for name, (has, keeps) in run_ranks(saved_bytes, 1)[0].items():
        assert has == keeps, name
