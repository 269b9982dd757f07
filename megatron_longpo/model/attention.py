"""Core attention of trees: trunk and branches in one pass, each token seeing only its own conversation.

    keys ->      trunk    chosen   rejected
    trunk        causal   -        -
    chosen       all      causal   -
    rejected     all      -        causal

The trunk attends itself (trunk.py), all branches attend the trunk and each itself (branches.py): kernel calls on
blocks, merged by log-sum-exp, none of which builds a mask. Padding is attended by no real token. The trees of a
micro-batch are attended one after the other.

The layer spec puts TreeAttention where stock Megatron has DotProductAttention
(megatron/core/transformer/dot_product_attention.py), and TreeParams travels in ``packed_seq_params``, which Megatron
hands to core attention through every layer and through activation recomputation.

Letters in shapes: H = query heads, G = key-value heads, L = tokens that this rank holds, T and R = of them a tree's
trunk and a tree's branches, D = size of a head. What starts with a head has a leading 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.model.branches import branches_backward, branches_forward
from megatron_longpo.model.layout import PackLayout, TreeLayout
from megatron_longpo.model.tasks import Task, run, together
from megatron_longpo.model.trunk import TrunkExchange, trunk_backward, trunk_forward

SavedAttention = dict[int, tuple[Tensor, Tensor]]
"""Layer number -> (output [1, H, L, D], log-sum-exp [1, H, L]) of tree_attention."""


@dataclass
class TreeParams(PackedSeqParams):
    """The layout of a micro-batch, carried through GPTModel in the place of PackedSeqParams.

    ``qkv_format='sbhd'`` keeps Megatron's attention on its unpacked path (megatron/core/transformer/attention.py).
    """

    layout: PackLayout | None = None
    positions_L: Tensor | None = None
    """int64: position of every token of this rank in its own conversation; rope.py turns it into angles."""
    saved_attention: SavedAttention | None = None
    """With --longpo-recompute keep-attention: from the forward pass that full recomputation runs without gradients
    until the layer is computed again."""


def tree_params(layout: PackLayout, positions_L: Tensor, keep_attention: bool = False) -> TreeParams:
    """Make the TreeParams of a layout; ``keep_attention`` computes attention once under full recomputation."""
    return TreeParams(
        qkv_format="sbhd",
        max_seqlen_q=len(positions_L),
        max_seqlen_kv=len(positions_L),
        layout=layout,
        positions_L=positions_L,
        saved_attention={} if keep_attention else None,
    )


def trunk_exchange(cp_comm_type: str | None, groups: ProcessGroupCollection) -> TrunkExchange:
    """Choose how the ranks of ``groups.cp`` share the trunk, by Megatron's name for it (default p2p).

    With ``a2a+p2p`` the first of ``groups.hcp`` swaps tokens for heads and the second passes keys around
    (Megatron's --hierarchical-context-parallel-sizes in that order).
    """
    if groups.cp.size() == 1:
        return TrunkExchange()
    match cp_comm_type or "p2p":
        case "p2p":
            return TrunkExchange(keys=groups.cp)
        case "all_gather" | "allgather":
            return TrunkExchange(keys=groups.cp, gather=True)
        case "a2a":
            return TrunkExchange(heads=groups.cp)
        case "a2a+p2p":
            heads, keys = groups.hcp
            return TrunkExchange(heads=heads, keys=keys)
        case other:
            raise ValueError(f"cp_comm_type {other!r}; known are p2p, all_gather, a2a and a2a+p2p")


class TreeAttention(nn.Module):
    """Drop-in core attention for Megatron's SelfAttention; needs a TreeParams."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if config.attention_dropout or config.window_size or attention_type != "self":
            raise ValueError("tree attention is causal self-attention without dropout and without a sliding window")
        self.scale: float = softmax_scale or config.kv_channels**-0.5  # type: ignore[operator]  # set by __post_init__
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
        self.layer_number = layer_number
        self.cp_group: ProcessGroup = groups.cp
        self.exchange = trunk_exchange(cp_comm_type, groups)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend; the names of the arguments are Megatron's.

        Args:
            query: [L, 1, H, D]; key, value: [L, 1, G, D], H and G of this tensor-parallel rank, L of this
                context-parallel one.
            packed_seq_params: a TreeParams.

        Returns:
            [L, 1, H * D].
        """
        assert isinstance(packed_seq_params, TreeParams) and packed_seq_params.layout is not None
        assert attention_mask is None and attention_bias is None
        return self.attend(query, key, value, packed_seq_params.layout, packed_seq_params.saved_attention)

    def attend(
        self, q_L1HD: Tensor, k_L1GD: Tensor, v_L1GD: Tensor, layout: PackLayout, saved: SavedAttention | None
    ) -> Tensor:
        """Do the work of ``forward``: [L, 1, H * D]; see TreeParams.saved_attention for ``saved``."""
        # The values are a view of queries, keys and values in one tensor, which saving the view would keep until the
        # backward pass; queries and keys are new tensors since they were rotated.
        q_HLD, k_GLD, v_GLD = (x.permute(1, 2, 0, 3) for x in (q_L1HD, k_L1GD, v_L1GD.contiguous()))
        attended = saved.pop(self.layer_number, None) if saved is not None else None
        if attended is None:
            attended = tree_attention(q_HLD, k_GLD, v_GLD, layout, self.exchange, self.cp_group, self.scale)
            if saved is not None and self.training and not torch.is_grad_enabled():
                saved[self.layer_number] = attended
        rest = (layout, self.exchange, self.cp_group, self.scale)
        out_HLD = _TreeAttention.apply(q_HLD, k_GLD, v_GLD, *attended, *rest)
        return out_HLD.permute(2, 0, 1, 3).flatten(2)


@torch.no_grad()
def tree_attention(
    q_HLD: Tensor,
    k_GLD: Tensor,
    v_GLD: Tensor,
    layout: PackLayout,
    exchange: TrunkExchange,
    cp_group: ProcessGroup,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend all trees of a micro-batch: (output [1, H, L, D], log-sum-exp [1, H, L] fp32, nats)."""
    of_layer = (q_HLD, k_GLD, v_GLD)
    trees = (_tree_forward(of_layer, *tree, exchange, cp_group, scale) for tree in trees_on_rank(layout))
    parts = [part for tree in run(together(*trees)) for part in tree]
    if layout.tail:
        nothing_HPD = torch.zeros_like(q_HLD[:, :, -layout.tail :])
        parts.append((nothing_HPD, nothing_HPD[..., 0].float()))
    out_HLD, lse_HL = _join(parts)
    return out_HLD, lse_HL


def _tree_forward(
    of_layer: Sequence[Tensor],
    tree: TreeLayout,
    trunk: slice,
    branches: slice,
    exchange: TrunkExchange,
    cp_group: ProcessGroup,
    scale: float,
) -> Task[list[tuple[Tensor, Tensor]]]:
    """Attend a tree: the trunk's output and log-sum-exp, and the branches'. Each computes while the other waits."""
    q_HTD, k_GTD, v_GTD = (x[:, :, trunk] for x in of_layer)
    q_HRD, k_GRD, v_GRD = (x[:, :, branches] for x in of_layer)
    of_branches, of_trunk = yield from together(
        branches_forward(q_HRD, k_GRD, v_GRD, k_GTD, v_GTD, tree, cp_group, scale),  # sends first, and little
        trunk_forward(q_HTD, k_GTD, v_GTD, exchange, scale),
    )
    return [of_trunk, of_branches]


def _tree_backward(
    of_layer: Sequence[Tensor],
    tree: TreeLayout,
    trunk: slice,
    branches: slice,
    exchange: TrunkExchange,
    cp_group: ProcessGroup,
    scale: float,
) -> Task[list[tuple[Tensor, ...]]]:
    """Compute (dQ, dK, dV) of a tree's trunk and of its branches; ``of_layer``: dO, Q, K, V, O, log-sum-exp."""
    g_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT = (x[:, :, trunk] for x in of_layer)
    g_HRD, q_HRD, k_GRD, v_GRD, out_HRD, lse_HR = (x[:, :, branches] for x in of_layer)
    (*of_branches, trunk_dk, trunk_dv), (dq_HTD, dk_GTD, dv_GTD) = yield from together(
        branches_backward(g_HRD, q_HRD, k_GRD, v_GRD, k_GTD, v_GTD, out_HRD, lse_HR, tree, cp_group, scale),
        trunk_backward(g_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT, exchange, scale),
    )
    real = slice(trunk_dk.shape[2])
    dk_GTD[:, :, real] += trunk_dk
    dv_GTD[:, :, real] += trunk_dv
    return [(dq_HTD, dk_GTD, dv_GTD), tuple(of_branches)]


class _TreeAttention(torch.autograd.Function):
    """Gives an output of tree_attention its gradient; forward computes nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HLD: Tensor,
        k_GLD: Tensor,
        v_GLD: Tensor,
        out_HLD: Tensor,
        lse_HL: Tensor,
        layout: PackLayout,
        exchange: TrunkExchange,
        cp_group: ProcessGroup,
        scale: float,
    ) -> Tensor:
        out_HLD = out_HLD.view_as(out_HLD)  # a tensor of its own, as autograd wants of a Function's output
        ctx.save_for_backward(q_HLD, k_GLD, v_GLD, out_HLD, lse_HL)
        ctx.layout, ctx.exchange, ctx.cp_group, ctx.scale = layout, exchange, cp_group, scale
        return out_HLD

    @staticmethod
    def backward(ctx: Any, grad_out_HLD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_HLD, k_GLD, v_GLD, out_HLD, lse_HL = ctx.saved_tensors
        rest = (ctx.exchange, ctx.cp_group, ctx.scale)
        of_layer = (grad_out_HLD, q_HLD, k_GLD, v_GLD, out_HLD, lse_HL)
        trees = (_tree_backward(of_layer, *tree, *rest) for tree in trees_on_rank(ctx.layout))
        parts = [part for tree in run(together(*trees)) for part in tree]
        if tail := ctx.layout.tail:
            parts.append(tuple(torch.zeros_like(x[:, :, -tail:]) for x in (q_HLD, k_GLD, v_GLD)))
        return *_join(parts), *[None] * 6


def _join(parts: list[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Join the first tensors [1, H, tokens, ...] of all parts, then the second ones, with the tokens outermost in
    memory, as the layers have them. Takes them out of ``parts``: what is joined is not kept beside the whole."""
    kinds = [list(some) for some in zip(*parts, strict=True)]
    parts.clear()
    while kinds:
        yield torch.cat([x.movedim(2, 0) for x in kinds.pop(0)]).movedim(0, 2)


def trees_on_rank(layout: PackLayout) -> Iterator[tuple[TreeLayout, slice, slice]]:
    """Yield each tree with this rank's tokens of its trunk and of its branches: no tree reads or writes elsewhere."""
    for tree, part in zip(layout.trees, layout.parts, strict=True):
        border = part.start + tree.rank_trunk
        yield tree, slice(part.start, border), slice(border, part.stop)
