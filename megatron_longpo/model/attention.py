"""Core attention of a pair: trunk and both branches in one pass, each token seeing only its own conversation.

    keys ->      trunk    chosen   rejected
    trunk        causal   -        -
    chosen       all      causal   -
    rejected     all      -        causal

The trunk attends itself (trunk.py), both branches attend the trunk and each itself (branches.py): kernel calls on
blocks, merged by log-sum-exp, none of which builds a mask. Padding is attended by no real token. The pairs of a
micro-batch are attended one after the other.

The layer spec puts PairAttention where stock Megatron has DotProductAttention
(megatron/core/transformer/dot_product_attention.py), and PairParams travels in ``packed_seq_params``, which Megatron
hands to core attention through every layer and through activation recomputation.
"""

from collections.abc import Iterator
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
from megatron_longpo.model.layout import PackLayout, PairLayout
from megatron_longpo.model.trunk import TrunkExchange, trunk_backward, trunk_forward

Kept = dict[int, tuple[Tensor, Tensor]]
"""Layer number -> (output, log-sum-exp) of pair_attention."""


@dataclass
class PairParams(PackedSeqParams):
    """The layout of a micro-batch, carried through GPTModel in the place of PackedSeqParams.

    ``qkv_format='sbhd'`` keeps Megatron's attention on its unpacked path (megatron/core/transformer/attention.py).
    """

    layout: PackLayout | None = None
    positions_L: Tensor | None = None
    """int64: position of every token of this rank in its own conversation; rope.py turns it into angles."""
    kept: Kept | None = None
    """With --longpo-recompute keep-attention: from the forward pass that full recomputation runs without gradients
    until the layer is computed again."""


def pair_params(layout: PackLayout, positions_L: Tensor, keep_attention: bool = False) -> PairParams:
    """The PairParams of a layout; ``keep_attention`` computes attention once under full recomputation."""
    return PairParams(
        qkv_format="sbhd",
        max_seqlen_q=len(positions_L),
        max_seqlen_kv=len(positions_L),
        layout=layout,
        positions_L=positions_L,
        kept={} if keep_attention else None,
    )


def trunk_exchange(cp_comm_type: str | None, groups: ProcessGroupCollection) -> TrunkExchange:
    """How the ranks of ``groups.cp`` share the trunk, by Megatron's name for it (default p2p).

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


class PairAttention(nn.Module):
    """Drop-in core attention for Megatron's SelfAttention; needs a PairParams."""

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
            raise ValueError("pair attention is causal self-attention without dropout and without a sliding window")
        self.scale = softmax_scale or config.kv_channels**-0.5  # type: ignore[operator]  # set by __post_init__
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
        """Attend.

        Args:
            query: [L, 1, H, D]; key, value: [L, 1, G, D], H and G of this tensor-parallel rank, L of this
                context-parallel one.
            packed_seq_params: a PairParams.

        Returns:
            [L, 1, H * D].
        """
        assert isinstance(packed_seq_params, PairParams) and packed_seq_params.layout is not None
        assert attention_mask is None and attention_bias is None
        return self.attend(query, key, value, packed_seq_params.layout, packed_seq_params.kept)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, kept: Kept | None) -> Tensor:
        """forward's work; see PairParams for ``kept``."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        known = kept.pop(self.layer_number, None) if kept is not None else None
        if known is None:
            known = pair_attention(q, k, v, layout, self.exchange, self.cp_group, self.scale)
            if kept is not None and self.training and not torch.is_grad_enabled():
                kept[self.layer_number] = known
        out_HLD = _PairAttention.apply(q, k, v, *known, layout, self.exchange, self.cp_group, self.scale)
        return out_HLD.permute(2, 0, 1, 3).flatten(2)


@torch.no_grad()
def pair_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: PackLayout, exchange: TrunkExchange, cp_group: ProcessGroup, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend [1, H, L, D] queries to [1, G, L, D] keys: (output [1, H, L, D], log-sum-exp [1, H, L] fp32, nats)."""
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)
    for pair, trunk, branches in places(layout):
        q_T, k_T, v_T = (x[:, :, trunk] for x in (q, k, v))
        out[:, :, trunk], lse[:, :, trunk] = trunk_forward(q_T, k_T, v_T, exchange, scale)
        q_B, k_B, v_B = (x[:, :, branches] for x in (q, k, v))
        out[:, :, branches], lse[:, :, branches] = branches_forward(q_B, k_B, v_B, k_T, v_T, pair, cp_group, scale)
    return out, lse


class _PairAttention(torch.autograd.Function):
    """Gives an output of pair_attention its gradient; forward computes nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        layout: PackLayout,
        exchange: TrunkExchange,
        cp_group: ProcessGroup,
        scale: float,
    ) -> Tensor:
        out = out.view_as(out)  # a tensor of its own, as autograd wants of a Function's output
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.exchange, ctx.cp_group, ctx.scale = layout, exchange, cp_group, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        exchange, cp_group, scale = ctx.exchange, ctx.cp_group, ctx.scale
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for pair, trunk, branches in places(ctx.layout):
            g_T, q_T, k_T, v_T, out_T, lse_T = (x[:, :, trunk] for x in (grad_out, q, k, v, out, lse))
            dq[:, :, trunk], dk[:, :, trunk], dv[:, :, trunk] = trunk_backward(
                g_T, q_T, k_T, v_T, out_T, lse_T, exchange, scale
            )
            g_B, q_B, k_B, v_B, out_B, lse_B = (x[:, :, branches] for x in (grad_out, q, k, v, out, lse))
            dq[:, :, branches], dk[:, :, branches], dv[:, :, branches], dk_T, dv_T = branches_backward(
                g_B, q_B, k_B, v_B, k_T, v_T, out_B, lse_B, pair, cp_group, scale
            )
            dk[:, :, trunk] += dk_T
            dv[:, :, trunk] += dv_T
        return dq, dk, dv, *[None] * 6


def places(layout: PackLayout) -> Iterator[tuple[PairLayout, slice, slice]]:
    """Each pair with this rank's share of its trunk and of its branches: no pair reads or writes elsewhere."""
    for pair, part in zip(layout.pairs, layout.parts, strict=True):
        border = part.start + pair.local_trunk
        yield pair, slice(part.start, border), slice(border, part.stop)
