"""Rotary angles at the positions of a pair, where both branches continue from the trunk."""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from megatron_longpo.model.attention import PairParams


class PairRotaryEmbedding(RotaryEmbedding):
    """Stock rotary embedding, read at given positions instead of 0, 1, 2, ...

    GPTModel asks ``get_rotary_seq_len`` for a length and hands what it gets to ``forward``, unread
    (megatron/core/models/gpt/gpt_model.py, ``_preprocess``). For a PairParams that "length" is the tensor of positions.
    """

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> Any:
        """The positions, int64 [L], of the PairParams among the arguments."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, PairParams):
                return value.positions_L
        raise ValueError("the model runs on pairs only: pass a PairParams as packed_seq_params")

    def forward(self, max_seq_len: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """Angles [L, 1, 1, D] in radians, fp32, at the positions ``max_seq_len`` (int64 [L])."""
        self.inv_freq = self.inv_freq.to(max_seq_len.device)
        positions = max_seq_len.to(self.inv_freq.dtype)
        if self.seq_len_interpolation_factor is not None:
            positions = positions / self.seq_len_interpolation_factor
        angles = torch.outer(positions, self.inv_freq)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
