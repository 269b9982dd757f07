"""Which trees of a pair are read: a trunk, long or short, with one answer or both as its branches.

The long trunk holds the whole document; a pair has one. The short trunks hold the chunk that a turn asks about; a pair
has one a turn.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.data.render import Context

Answer = Literal["chosen", "rejected"]


class TreeKind(NamedTuple):
    """One tree of a pair, or with short contexts one a turn."""

    context: Context
    answers: tuple[Answer, ...] = ("chosen", "rejected")
    """The branches, in order."""


class HasLengths(Protocol):
    """A dataset's reader, or its index alone."""

    def all_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]: ...


class TreeLengths(NamedTuple):
    """The trees of a whole dataset."""

    pair_T: NDArray[np.int64]
    """The pair that each tree belongs to."""
    lengths_T3: NDArray[np.int64]
    """Tokens of the trunk, of the chosen and of the rejected branch; 0 for a branch that is not read."""

    def sum_by_pair(self, values_T: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Add up a value of each tree for each pair of the dataset: [pairs]."""
        return np.bincount(self.pair_T, weights=values_T, minlength=int(self.pair_T.max()) + 1)

    def of_pairs(self, pairs: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The trees of these pairs: tokens of the trunk, and of each branch that is read."""
        lengths = self.lengths_T3[np.isin(self.pair_T, pairs)]
        return [(trunk, [branch for branch in branches if branch]) for trunk, *branches in lengths.tolist()]

    @property
    def longest_trunk(self) -> int:
        """In tokens."""
        return int(self.lengths_T3[:, 0].max())

    def padded(self, trunk_multiple: int) -> "TreeLengths":
        """With trunks that are padded to a multiple of so many tokens."""
        padding_T = -self.lengths_T3[:, 0] % trunk_multiple
        return TreeLengths(self.pair_T, self.lengths_T3 + np.outer(padding_T, [1, 0, 0]))

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of all trees of each pair: [pairs]."""
        return self.sum_by_pair(self.lengths_T3.sum(1)).astype(np.int64)


def tree_lengths(dataset: HasLengths, kinds: Sequence[TreeKind]) -> TreeLengths:
    """Find the trees of these kinds of every pair; reads the dataset's index only."""
    lengths_C3, pair_C, is_long_C = dataset.all_lengths()
    pairs: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    for kind in kinds:
        chosen_C = is_long_C if kind.context == "long" else ~is_long_C
        read_3 = np.array([1, "chosen" in kind.answers, "rejected" in kind.answers], np.int64)
        pairs.append(pair_C[chosen_C])
        lengths.append(lengths_C3[chosen_C] * read_3)
    return TreeLengths(np.concatenate(pairs), np.concatenate(lengths))
