"""The tokens of a tree as tensors: their ids, their positions, and which of them a rank holds (layout.py).

Letters in shapes: T = tokens of one part, S = tokens of the whole sequence with padding, L = tokens that a rank holds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_longpo.model.layout import TreeLayout


def input_tokens(layout: TreeLayout, trunk_T: Tensor, branches_T: Sequence[Tensor]) -> Tensor:
    """The token ids of the sequence, int64 [S]; padding is token 0, which no loss reads."""
    after_trunk, after_branches = (trunk_T.new_zeros(n) for n in (layout.trunk_padding, layout.branch_padding))
    return torch.cat((trunk_T, after_trunk, *branches_T, after_branches))


def positions(layout: TreeLayout) -> Tensor:
    """The position of every token in its own conversation, int64 [S]: all branches continue from the trunk."""
    parts = [(0, layout.trunk), (0, layout.trunk_padding)]
    parts += [(layout.trunk, length) for length in layout.branches]
    parts.append((0, layout.branch_padding))
    return torch.cat([torch.arange(start, start + length) for start, length in parts])


def rank_tokens(layout: TreeLayout, cp_rank: int) -> Tensor:
    """Where each token that a context-parallel rank holds stands in the whole sequence, int64 [L]."""
    branches = layout.padded_trunk + cp_rank * layout.rank_branches
    pieces = [(branches, branches + layout.rank_branches)]
    if layout.cp_size == 1:
        pieces.insert(0, (0, layout.padded_trunk))
    else:
        half = layout.rank_trunk // 2
        mirror = 2 * layout.cp_size - 1 - cp_rank
        pieces = [(cp_rank * half, (cp_rank + 1) * half), (mirror * half, (mirror + 1) * half), *pieces]
    return torch.cat([torch.arange(start, stop) for start, stop in pieces])
