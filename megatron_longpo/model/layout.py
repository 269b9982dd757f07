"""Where the tokens of pairs stand in the sequence that the model sees, and who holds them: index arithmetic.

A pair runs as ``[trunk | padding | chosen | rejected | padding]``. The trunk stops just before the token that predicts
the first answer; each branch opens with its own copy of that token, at the position that follows the trunk. So

* both branches count their positions on from the trunk's length;
* every response token is predicted by a token of its own branch;
* the trunk's last token predicts the opener, which is the same token in both branches.

Under context parallelism every rank holds a share of the trunk and a share of the branches. The trunk is cut into two
chunks a rank; rank r has chunk r and the r-th from the end ("zigzag", megatron/core/utils.py,
``get_batch_on_this_cp_rank``), so that causal attention is equal work for all. The branches are cut into one piece a
rank, in order. Trunk padding follows the trunk's last token, so no real token attends to it.

Several pairs can share a micro-batch (PackLayout): every rank then holds its share of the first, its share of the
second, and so on. Nothing else connects them.

Letters in shapes: S = tokens of a pair's whole sequence with padding, L = tokens of one rank's share of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLayout:
    """Lengths in tokens of the parts of one sequence."""

    trunk: int
    chosen: int
    rejected: int
    trunk_padding: int = 0
    branch_padding: int = 0
    num_shares: int = 1
    """Context-parallel ranks that share the sequence."""

    def __post_init__(self) -> None:
        if min(self.trunk, self.chosen, self.rejected) < 1 or min(self.trunk_padding, self.branch_padding) < 0:
            raise ValueError(f"trunk and branches need at least one token each, padding none or more: {self}")
        chunks = 2 * self.num_shares if self.num_shares > 1 else 1
        if self.padded_trunk % chunks or self.padded_branches % self.num_shares:
            raise ValueError(f"{self.num_shares} context-parallel ranks cannot share this evenly: {self}")

    @property
    def padded_trunk(self) -> int:
        return self.trunk + self.trunk_padding

    @property
    def padded_branches(self) -> int:
        """Both branches and the padding behind them."""
        return self.chosen + self.rejected + self.branch_padding

    @property
    def length(self) -> int:
        """S: all tokens, padding included."""
        return self.padded_trunk + self.padded_branches

    @property
    def padding(self) -> int:
        return self.trunk_padding + self.branch_padding

    @property
    def local_trunk(self) -> int:
        """Trunk tokens that each rank holds, padding included; they stand before its share of the branches."""
        return self.padded_trunk // self.num_shares

    @property
    def local_branches(self) -> int:
        """Branch tokens that each rank holds, padding included."""
        return self.padded_branches // self.num_shares

    @property
    def local_length(self) -> int:
        """L: tokens that each rank holds, padding included."""
        return self.local_trunk + self.local_branches

    @property
    def branch_slices(self) -> tuple[slice, slice]:
        """The chosen and the rejected branch in the whole sequence."""
        border = self.padded_trunk + self.chosen
        return slice(self.padded_trunk, border), slice(border, border + self.rejected)


def pair_layout(trunk: int, chosen: int, rejected: int, num_shares: int = 1) -> PairLayout:
    """The layout of a pair with these lengths (tokens), shared by ``num_shares`` context-parallel ranks."""
    trunk_padding = -trunk % (2 * num_shares) if num_shares > 1 else 0
    return PairLayout(trunk, chosen, rejected, trunk_padding, -(chosen + rejected) % num_shares, num_shares)


@dataclass(frozen=True, slots=True)
class PackLayout:
    """The pairs of a micro-batch, one after the other, as each context-parallel rank holds them."""

    pairs: tuple[PairLayout, ...]
    tail: int = 0
    """Padding at the end of every rank's tokens."""

    @property
    def parts(self) -> list[slice]:
        """Each pair's share among a rank's tokens."""
        stops = list(accumulate(pair.local_length for pair in self.pairs))
        return [slice(stop - pair.local_length, stop) for pair, stop in zip(self.pairs, stops, strict=True)]

    @property
    def length(self) -> int:
        """Tokens of a rank, padding included."""
        return sum(pair.local_length for pair in self.pairs) + self.tail


def pack_layout(pairs: Sequence[PairLayout], multiple: int = 1) -> PackLayout:
    """Lay pairs of one number of shares out in a micro-batch, each rank's length a multiple of ``multiple``.

    Sequence parallelism cuts a rank's tokens further, into one part a tensor-parallel rank.
    """
    return PackLayout(tuple(pairs), -sum(pair.local_length for pair in pairs) % multiple)


def input_tokens(layout: PairLayout, trunk_T: Tensor, chosen_T: Tensor, rejected_T: Tensor) -> Tensor:
    """The token ids of the sequence, int64 [S]; padding is token 0, which no loss reads."""
    after_trunk, after_branches = (trunk_T.new_zeros(n) for n in (layout.trunk_padding, layout.branch_padding))
    return torch.cat((trunk_T, after_trunk, chosen_T, rejected_T, after_branches))


def positions(layout: PairLayout) -> Tensor:
    """The position of every token in its own conversation, int64 [S]: both branches continue from the trunk."""
    parts = (
        (0, layout.trunk),
        (0, layout.trunk_padding),
        (layout.trunk, layout.chosen),
        (layout.trunk, layout.rejected),
        (0, layout.branch_padding),
    )
    return torch.cat([torch.arange(start, start + length) for start, length in parts])


def share(layout: PairLayout, rank: int) -> Tensor:
    """Where each token of context-parallel rank ``rank`` stands in the whole sequence, int64 [L]."""
    branches = layout.padded_trunk + rank * layout.local_branches
    pieces = [(branches, branches + layout.local_branches)]
    if layout.num_shares == 1:
        pieces.insert(0, (0, layout.padded_trunk))
    else:
        half = layout.local_trunk // 2
        mirror = 2 * layout.num_shares - 1 - rank
        pieces = [(rank * half, (rank + 1) * half), (mirror * half, (mirror + 1) * half), *pieces]
    return torch.cat([torch.arange(start, stop) for start, stop in pieces])


def num_own_keys(layout: PairLayout, rank: int) -> int:
    """How many of a rank's trunk tokens are real; they come first in its share, padding last."""
    if layout.num_shares == 1:
        return layout.trunk
    half = layout.local_trunk // 2
    starts = (rank * half, (2 * layout.num_shares - 1 - rank) * half)
    return sum(min(max(layout.trunk - start, 0), half) for start in starts)


def own_segments(layout: PairLayout, rank: int) -> list[tuple[slice, slice]]:
    """A rank's share of the branches, as (part of one branch, what that branch has before the part).

    Both count from the start of the branches; padding belongs to no segment.
    """
    first, stop = rank * layout.local_branches, (rank + 1) * layout.local_branches
    segments: list[tuple[slice, slice]] = []
    for branch in layout.branch_slices:
        start, end = branch.start - layout.padded_trunk, branch.stop - layout.padded_trunk
        own = slice(max(start, first), min(end, stop))
        if own.start < own.stop:
            segments.append((own, slice(start, own.start)))
    return segments
