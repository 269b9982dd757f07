"""Core attention of a pair: trunk and both branches in one pass, each token seeing only its own conversation.

    keys ->      trunk    chosen   rejected
    trunk        causal   -        -
    chosen       all      causal   -
    rejected     all      -        causal

Three kinds of kernel calls, none of which builds a mask: the trunk attends itself causally; all branch queries attend
the trunk without mask; each branch attends itself causally. A branch's two partial results are merged by log-sum-exp
(kernels.merge). Padding attends nothing, is attended by nothing and comes out as zeros.

The layer spec puts PairAttention where stock Megatron has DotProductAttention
(megatron/core/transformer/dot_product_attention.py), and PairParams travels in ``packed_seq_params``, which Megatron
hands to core attention through every layer and through activation recomputation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longpo.model.kernels import attend, attend_backward, merge
from megatron_longpo.model.layout import PairLayout


@dataclass
class PairParams(PackedSeqParams):
    """The layout of the micro-batch's pair, carried through GPTModel in the place of PackedSeqParams.

    ``qkv_format='sbhd'`` keeps Megatron's attention on its unpacked path (megatron/core/transformer/attention.py).
    """

    layout: PairLayout | None = None
    positions_S: Tensor | None = None
    """int64: position of every token in its own conversation; rope.py turns it into angles."""


def pair_params(layout: PairLayout, positions_S: Tensor) -> PairParams:
    """The PairParams of a layout."""
    return PairParams(
        qkv_format="sbhd",
        max_seqlen_q=layout.length,
        max_seqlen_kv=layout.length,
        layout=layout,
        positions_S=positions_S,
    )


class PairAttention(nn.Module):
    """Drop-in core attention for Megatron's SelfAttention; needs a PairParams."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,  # cp_comm_type, pg_collection: context parallelism is refused in arguments.py
    ) -> None:
        super().__init__()
        if config.attention_dropout or config.window_size or attention_type != "self":
            raise ValueError("pair attention is causal self-attention without dropout and without a sliding window")
        self.scale = softmax_scale or config.kv_channels**-0.5  # type: ignore[operator]  # set by __post_init__

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
            query: [S, 1, H, D]; key, value: [S, 1, G, D], H and G of this tensor-parallel rank.
            packed_seq_params: a PairParams.

        Returns:
            [S, 1, H * D].
        """
        assert isinstance(packed_seq_params, PairParams) and packed_seq_params.layout is not None
        assert attention_mask is None and attention_bias is None
        out_HSD = _PairAttention.apply(*map(_to_heads_first, (query, key, value)), packed_seq_params.layout, self.scale)
        return out_HSD.permute(2, 0, 1, 3).flatten(2)


def _to_heads_first(x_S1HD: Tensor) -> Tensor:
    return x_S1HD.permute(1, 2, 0, 3)


class _PairAttention(torch.autograd.Function):
    """Forward and backward over [1, H, S, D] queries and [1, G, S, D] keys and values."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PairLayout, scale: float) -> Tensor:
        out = torch.zeros_like(q)
        lse = q.new_zeros(q.shape[:3], dtype=torch.float32)
        trunk, branches = layout.trunk_slice, layout.branches_slice
        out[:, :, trunk], lse[:, :, trunk] = attend(q[:, :, trunk], k[:, :, trunk], v[:, :, trunk], True, scale)
        on_trunk, lse_on_trunk = attend(q[:, :, branches], k[:, :, trunk], v[:, :, trunk], False, scale)
        for part in layout.branch_slices:
            inside = slice(part.start - branches.start, part.stop - branches.start)
            own = attend(q[:, :, part], k[:, :, part], v[:, :, part], True, scale)
            out[:, :, part], lse[:, :, part] = merge([(on_trunk[:, :, inside], lse_on_trunk[:, :, inside]), own])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout: PairLayout = ctx.layout
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        trunk, branches = layout.trunk_slice, layout.branches_slice
        calls = [(trunk, trunk, True), (branches, trunk, False)]
        calls += [(part, part, True) for part in layout.branch_slices]
        for queries, keys, causal in calls:
            part_dq, part_dk, part_dv = attend_backward(
                *(x[:, :, queries] for x in (grad_out, q)),
                *(x[:, :, keys] for x in (k, v)),
                *(x[:, :, queries] for x in (out, lse)),
                causal=causal,
                scale=ctx.scale,
            )
            dq[:, :, queries] += part_dq
            dk[:, :, keys] += part_dk
            dv[:, :, keys] += part_dv
        return dq, dk, dv, None, None
