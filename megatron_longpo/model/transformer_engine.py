"""Core attention of trees with ``--transformer-impl transformer_engine``.

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

from megatron_longpo.model.attention import SavedAttention, TreeAttention, trees_on_rank
from megatron_longpo.model.branches import branches_backward, branches_forward
from megatron_longpo.model.layout import PackLayout, TreeLayout
from megatron_longpo.model.tasks import run


class TransformerEngineAttention(TreeAttention):
    """TreeAttention with fused attention on the trunk."""

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
            cp_comm_type="all_gather" if cp_comm_type == "allgather" else cp_comm_type,  # the one name that it knows
            pg_collection=rest.get("pg_collection"),
        )

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Nothing, as of TEDotProductAttention itself: so a checkpoint is that of a stock model."""
        return {}

    def attend(
        self, q_L1HD: Tensor, k_L1GD: Tensor, v_L1GD: Tensor, layout: PackLayout, saved: SavedAttention | None
    ) -> Tensor:
        """Attend as TreeAttention does; nothing is saved."""
        parts: list[Tensor] = []
        for tree, trunk, branches in trees_on_rank(layout):
            # A part of a larger tensor is not what Transformer Engine takes (get_qkv_layout reads strides and offsets);
            # .contiguous() would leave it one.
            is_part = len(layout.trees) > 1 or trunk.start > 0
            q_T1HD, k_T1GD, v_T1GD = (x[trunk].clone() if is_part else x[trunk] for x in (q_L1HD, k_L1GD, v_L1GD))
            parts.append(self.trunk(q_T1HD, k_T1GD, v_T1GD, None, AttnMaskType.causal))
            q_HRD, k_GRD, v_GRD = (x[branches].permute(1, 2, 0, 3) for x in (q_L1HD, k_L1GD, v_L1GD))
            k_GTD, v_GTD = (x.permute(1, 2, 0, 3) for x in (k_T1GD, v_T1GD))
            out_HRD = _BranchAttention.apply(q_HRD, k_GRD, v_GRD, k_GTD, v_GTD, tree, self.cp_group, self.scale)
            parts.append(out_HRD.permute(2, 0, 1, 3).flatten(2))
        parts.append(parts[0].new_zeros(layout.tail, *parts[0].shape[1:]))
        return torch.cat(parts)


class _BranchAttention(torch.autograd.Function):
    """branches.py with its backward; autograd adds up the two gradients of the trunk's keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HRD: Tensor,
        k_GRD: Tensor,
        v_GRD: Tensor,
        trunk_k_GTD: Tensor,
        trunk_v_GTD: Tensor,
        layout: TreeLayout,
        cp_group: ProcessGroup,
        scale: float,
    ) -> Tensor:
        inputs = (q_HRD, k_GRD, v_GRD, trunk_k_GTD, trunk_v_GTD)
        out_HRD, lse_HR = run(branches_forward(*inputs, layout, cp_group, scale))
        ctx.save_for_backward(*inputs, out_HRD, lse_HR)
        ctx.rest = (layout, cp_group, scale)
        return out_HRD

    @staticmethod
    def backward(ctx: Any, grad_out_HRD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *of_branches, trunk_dk, trunk_dv = run(branches_backward(grad_out_HRD, *ctx.saved_tensors, *ctx.rest))
        padding = ctx.saved_tensors[3].shape[2] - trunk_dk.shape[2]
        of_trunk = (torch.nn.functional.pad(grad, (0, 0, 0, padding)) for grad in (trunk_dk, trunk_dv))
        return *of_branches, *of_trunk, None, None, None
