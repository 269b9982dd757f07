"""Rotary angles at the positions of trees, where all branches continue from the trunk."""

from typing import Any

import torch
from torch import Tensor, nn

from megatron_longpo.model.attention import TreeParams


class TreeRotaryEmbedding(nn.Module):
    """Stands in the place of Megatron's RotaryEmbedding: it is read at given positions instead of 0, 1, 2, ...

    GPTModel asks ``get_rotary_seq_len`` for a length and hands what it gets to ``forward``, unread
    (megatron/core/models/gpt/gpt_model.py, ``_preprocess``). For a TreeParams that "length" is the tensor of positions.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        """``inv_freq``: fp32 [D / 2], radians a token."""
        super().__init__()
        # A copy is no buffer, which a bf16 model would round: tensors of transformers carry torch's mark of buffers.
        self.inv_freq = inv_freq.clone()

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> Any:
        """The positions, int64 [L], of the TreeParams among the arguments."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, TreeParams):
                return value.positions_L
        raise ValueError("the model runs on trees only: pass a TreeParams as packed_seq_params")

    def forward(self, positions_L: Tensor, **_: Any) -> Tensor:
        """Angles [L, 1, 1, D] in radians, fp32, at the positions (int64 [L])."""
        self.inv_freq = self.inv_freq.to(positions_L.device)
        angles_LR = torch.outer(positions_L.to(self.inv_freq.dtype), self.inv_freq)
        return torch.cat((angles_LR, angles_LR), dim=-1)[:, None, None, :]
