"""Core attention of a pair with ``--transformer-impl transformer_engine``.

The trunk is what Transformer Engine is made for: causal attention of as many queries as keys, under any
``--cp-comm-type``; its zigzag order over the context-parallel ranks is that of layout.py. The branches, which it
refuses under context parallelism (more keys than queries), run as with the local implementation (branches.py).
"""

from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.attention import Kept, PairAttention, places
from megatron_longpo.model.branches import branches_backward, branches_forward
from megatron_longpo.model.layout import PackLayout, PairLayout


class TransformerEngineAttention(PairAttention):
    """PairAttention with fused attention on the trunk."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(config, layer_number, attn_mask_type, attention_type, cp_comm_type, **rest)
        from megatron.core.extensions.transformer_engine import TEDotProductAttention  # absent without the package

        self.trunk = TEDotProductAttention(
            config,
            layer_number,
            AttnMaskType.causal,
            attention_type,
            softmax_scale=self.scale,
            cp_comm_type=cp_comm_type,
            pg_collection=rest.get("pg_collection"),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, kept: Kept | None) -> Tensor:
        """See PairAttention.attend; nothing is kept."""
        parts: list[Tensor] = []
        for pair, trunk, branches in places(layout):
            q_T, k_T, v_T = (x[trunk] for x in (query, key, value))
            parts.append(self.trunk(q_T, k_T, v_T, None, AttnMaskType.causal))
            q_B, k_B, v_B = (x[branches].permute(1, 2, 0, 3) for x in (query, key, value))
            on_trunk = (x.permute(1, 2, 0, 3) for x in (k_T, v_T))
            out_B = _BranchAttention.apply(q_B, k_B, v_B, *on_trunk, pair, self.cp_group, self.scale)
            parts.append(out_B.permute(2, 0, 1, 3).flatten(2))
        parts.append(parts[0].new_zeros(layout.tail, *parts[0].shape[1:]))
        return torch.cat(parts)


class _BranchAttention(torch.autograd.Function):
    """branches.py with its backward; autograd adds up the two gradients of the trunk's keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        trunk_k: Tensor,
        trunk_v: Tensor,
        layout: PairLayout,
        cp_group: ProcessGroup,
        scale: float,
    ) -> Tensor:
        out, lse = branches_forward(q, k, v, trunk_k, trunk_v, layout, cp_group, scale)
        ctx.save_for_backward(q, k, v, trunk_k, trunk_v, out, lse)
        ctx.rest = (layout, cp_group, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *branches_backward(grad_out, *ctx.saved_tensors, *ctx.rest), None, None, None
