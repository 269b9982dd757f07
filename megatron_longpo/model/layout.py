"""Where the tokens of trees stand in the sequence that the model sees, and who holds them: arithmetic, without torch.

A tree is a *trunk*, the prefix that several conversations share, and its *branches*, the different ways in which they
go on. It runs as ``[trunk | padding | branch | ... | branch | padding]``; the long tree of a LongPO pair is
``[trunk | chosen | rejected]``. The trunk stops just before the token that predicts the first answer; each branch
starts with its own copy of that token, at the position that follows the trunk. So

* all branches count their positions on from the trunk's length;
* every response token is predicted by a token of its own branch;
* the trunk's last token predicts the branches' first token, which is the same in all of them.

Under context parallelism every rank holds a part of the trunk and a part of the branches. The trunk is cut into two
chunks a rank; rank r has chunk r and the r-th from the end ("zigzag", megatron/core/utils.py,
``get_batch_on_this_cp_rank``), so that causal attention is equal work for all. The branches are cut into one piece a
rank, in order. Trunk padding follows the trunk's last token, so no real token attends to it.

Several trees can share a micro-batch (PackLayout): every rank then holds its tokens of the first, its tokens of the
second, and so on. Nothing else connects them.

Letters in shapes: T = tokens of one part, S = tokens of a tree's whole sequence with padding, L = tokens of it that one
rank holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Lengths in tokens of the parts of one sequence."""

    trunk: int
    branches: tuple[int, ...]
    """One or more."""
    trunk_padding: int = 0
    branch_padding: int = 0
    """Behind the last branch."""
    cp_size: int = 1
    """Context-parallel ranks that hold the sequence together."""

    def __post_init__(self) -> None:
        if min(self.trunk, *(self.branches or (0,))) < 1 or min(self.trunk_padding, self.branch_padding) < 0:
            raise ValueError(
                f"a trunk and one branch or more need at least one token each, padding none or more: {self}"
            )
        chunks = 2 * self.cp_size if self.cp_size > 1 else 1
        if self.padded_trunk % chunks or self.padded_branches % self.cp_size:
            raise ValueError(f"{self.cp_size} context-parallel ranks cannot share this evenly: {self}")

    @property
    def padded_trunk(self) -> int:
        return self.trunk + self.trunk_padding

    @property
    def padded_branches(self) -> int:
        """Tokens of all branches and of the padding behind them."""
        return sum(self.branches) + self.branch_padding

    @property
    def length(self) -> int:
        """All tokens, padding included: S."""
        return self.padded_trunk + self.padded_branches

    @property
    def padding(self) -> int:
        return self.trunk_padding + self.branch_padding

    @property
    def rank_trunk(self) -> int:
        """Trunk tokens that each rank holds, padding included; they stand before its part of the branches."""
        return self.padded_trunk // self.cp_size

    @property
    def rank_branches(self) -> int:
        """Branch tokens that each rank holds, padding included."""
        return self.padded_branches // self.cp_size

    @property
    def rank_length(self) -> int:
        """All tokens that each rank holds, padding included: L."""
        return self.rank_trunk + self.rank_branches

    @property
    def branch_slices(self) -> list[slice]:
        """Each branch in the whole sequence."""
        stops = accumulate(self.branches, initial=self.padded_trunk)
        return [slice(stop, stop + length) for stop, length in zip(stops, self.branches, strict=False)]


def tree_layout(trunk: int, branches: Sequence[int], cp_size: int = 1, trunk_multiple: int = 1) -> TreeLayout:
    """Lay out a tree of these lengths (tokens) for ``cp_size`` context-parallel ranks, with the least padding.

    The padded trunk is a multiple of ``trunk_multiple`` as well (kernels.py, ``trunk_multiple``).
    """
    trunk_padding = -trunk % math.lcm(trunk_multiple, 2 * cp_size if cp_size > 1 else 1)
    return TreeLayout(trunk, tuple(branches), trunk_padding, -sum(branches) % cp_size, cp_size)


@dataclass(frozen=True, slots=True)
class PackLayout:
    """The trees of a micro-batch, one after the other, as each context-parallel rank holds them."""

    trees: tuple[TreeLayout, ...]
    tail: int = 0
    """Padding at the end of every rank's tokens."""

    @property
    def parts(self) -> list[slice]:
        """Where each tree stands among a rank's tokens."""
        stops = accumulate(tree.rank_length for tree in self.trees)
        return [slice(stop - tree.rank_length, stop) for tree, stop in zip(self.trees, stops, strict=True)]

    @property
    def length(self) -> int:
        """Tokens of a rank, padding included."""
        return sum(tree.rank_length for tree in self.trees) + self.tail


def pack_layout(trees: Sequence[TreeLayout], multiple: int = 1) -> PackLayout:
    """Lay trees of one ``cp_size`` out in a micro-batch, each rank's length a multiple of ``multiple``.

    Sequence parallelism cuts a rank's tokens further, into one part a tensor-parallel rank.
    """
    return PackLayout(tuple(trees), -sum(tree.rank_length for tree in trees) % multiple)


def num_real_trunk_keys(layout: TreeLayout, cp_rank: int) -> int:
    """How many of a rank's trunk tokens are real; they come first among its tokens, padding last."""
    if layout.cp_size == 1:
        return layout.trunk
    half = layout.rank_trunk // 2
    starts = (cp_rank * half, (2 * layout.cp_size - 1 - cp_rank) * half)
    return sum(min(max(layout.trunk - start, 0), half) for start in starts)


def branch_segments(layout: TreeLayout, cp_rank: int) -> list[tuple[slice, slice]]:
    """What a rank holds of the branches, as (part of one branch, what that branch has before the part).

    Both count from the start of the first branch; padding belongs to no segment.
    """
    first, stop = cp_rank * layout.rank_branches, (cp_rank + 1) * layout.rank_branches
    segments: list[tuple[slice, slice]] = []
    for branch in layout.branch_slices:
        start, end = branch.start - layout.padded_trunk, branch.stop - layout.padded_trunk
        own = slice(max(start, first), min(end, stop))
        if own.start < own.stop:
            segments.append((own, slice(start, own.start)))
    return segments
