"""Which pairs of a global batch share a micro-batch, and which data-parallel rank runs it.

The loss is a mean over the pairs of the global batch, so any grouping gives the same step; this one makes the ranks,
which wait for each other at its end, do equal work. The pairs of a step are those of the samples
``[step * global_batch_size, (step + 1) * global_batch_size)`` whatever the grouping, so a run may resume with another
number of ranks or another packing. Megatron runs the same number of micro-batches on every rank in every step
(megatron/core/num_microbatches_calculator.py), so that number is found once, for all steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.errors import UserError

Groups = list[list[list[int]]]
"""[rank][micro-batch] -> places in the global batch."""


def group_pairs(
    tokens_P: NDArray[np.int64],
    work_P: NDArray[np.float64],
    num_ranks: int,
    num_microbatches: int,
    max_tokens: int | None,
) -> Groups | None:
    """Deal the pairs of one global batch out, the heaviest first, each to the micro-batch with the least work so far.

    Then the micro-batches to the ranks in the same way. On every rank the heaviest comes first: what does not fit in
    memory shows at once.

    Args:
        tokens_P, work_P: size of each pair (trunk and both branches) and its work (FLOPs).
        num_ranks: data-parallel ranks.
        num_microbatches: of each rank; together at most as many as there are pairs.
        max_tokens: of a micro-batch; None for one pair each.

    Returns:
        The groups, none of them empty; None if this way of dealing finds no place for a pair.
    """
    num_groups = num_ranks * num_microbatches
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    tokens_G, work_G = np.zeros(num_groups, np.int64), np.zeros(num_groups)
    for place in np.argsort(-work_P, kind="stable").tolist():
        fits_G = tokens_G == 0 if max_tokens is None else tokens_G + tokens_P[place] <= max_tokens
        if not fits_G.any():
            return None
        group = int(np.argmin(np.where(fits_G, work_G, np.inf)))
        groups[group].append(place)
        tokens_G[group] += tokens_P[place]
        work_G[group] += work_P[place]
    ranks: Groups = [[] for _ in range(num_ranks)]
    work_R = np.zeros(num_ranks)
    for group in np.argsort(-work_G, kind="stable").tolist():
        has_room_R = np.array([len(rank) < num_microbatches for rank in ranks])
        rank = int(np.argmin(np.where(has_room_R, work_R, np.inf)))
        ranks[rank].append(groups[group])
        work_R[rank] += work_G[group]
    return ranks


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The grouping of every step of a run."""

    pair_of_sample: Callable[[int], int]
    """Such as a PairOrder."""
    tokens: NDArray[np.int64]
    work: NDArray[np.float64]
    """Tokens and work of every pair of the dataset: see group_pairs."""
    global_batch_size: int
    num_ranks: int
    max_tokens: int | None
    multiple: int = 1
    """The number of micro-batches on a rank is a multiple of this: the pipeline's virtual stages ask for it."""

    def num_microbatches(self, num_steps: int) -> int:
        """The smallest number of micro-batches a rank with which every one of ``num_steps`` steps fits.

        It divides the pairs of a rank, because Megatron counts ``--micro-batch-size`` pairs for each.

        Raises:
            UserError: a pair alone is larger than ``max_tokens``, or the pairs cannot be dealt out evenly.
        """
        pairs_per_rank = self.global_batch_size // self.num_ranks
        if pairs_per_rank % self.multiple or self.global_batch_size % self.num_ranks:
            unit = self.num_ranks * self.multiple
            stages = f" x {self.multiple} stages of an interleaved pipeline" if self.multiple > 1 else ""
            raise UserError(
                f"--global-batch-size {self.global_batch_size} is not divisible by the {self.num_ranks} data-parallel "
                f"ranks{stages}; give a multiple, such as {self.global_batch_size + -self.global_batch_size % unit}"
            )
        if self.max_tokens is None:
            return pairs_per_rank
        if (largest := int(self.tokens.max())) > self.max_tokens:
            raise UserError(
                f"--longpo-tokens-per-microbatch {self.max_tokens} is below the longest pair, {largest} tokens; give "
                f"at least {largest}"
            )
        number = self.multiple
        for step in range(num_steps):
            while pairs_per_rank % number or self._groups(step * self.global_batch_size, number) is None:
                number += self.multiple
        return number

    def microbatches(self, first_sample: int, num_microbatches: int, rank: int) -> Iterator[list[int]]:
        """Sample indices of each micro-batch of ``rank``, without end, from the step that begins at ``first_sample``.

        Raises:
            UserError: a step does not fit: the global batch size is not that of the run that is being resumed.
        """
        for first in count(first_sample, self.global_batch_size):
            groups = self._groups(first, num_microbatches)
            if groups is None:
                raise UserError(
                    f"the pairs from sample {first} on do not fit {num_microbatches} micro-batches a rank: the run was "
                    f"resumed with another --global-batch-size; restore it or raise --longpo-tokens-per-microbatch"
                )
            for group in groups[rank]:
                yield [first + place for place in group]

    def imbalance(self, num_microbatches: int, num_steps: int) -> float:
        """Work of the rank that has most over the mean of all ranks, each summed over the steps; 1 is perfect."""
        most = mean = 0.0
        for first in range(0, num_steps * self.global_batch_size, self.global_batch_size):
            work_P = self.work[self._pairs(first)]
            groups = self._groups(first, num_microbatches) or []
            most += max(sum(work_P[place] for group in rank for place in group) for rank in groups)
            mean += work_P.sum() / self.num_ranks
        return most / mean

    def largest_microbatch(self, num_microbatches: int, num_steps: int) -> list[int]:
        """The pairs of the micro-batch with the most tokens of all that the steps have."""
        if self.max_tokens is None:  # a pair each
            return [int(np.argmax(self.tokens))]
        steps = range(0, num_steps * self.global_batch_size, self.global_batch_size)
        groups = (g for first in steps for rank in self.pairs_of_step(first, num_microbatches) for g in rank)
        return max(groups, key=lambda pairs: self.tokens[pairs].sum())

    def pairs_of_step(self, first_sample: int, num_microbatches: int) -> Groups:
        """The pairs of each rank's micro-batches."""
        pairs, groups = self._pairs(first_sample), self._groups(first_sample, num_microbatches)
        assert groups is not None, "num_microbatches() found a number that fits"
        return [[[pairs[place] for place in group] for group in rank] for rank in groups]

    def _groups(self, first_sample: int, num_microbatches: int) -> Groups | None:
        pairs = self._pairs(first_sample)
        return group_pairs(self.tokens[pairs], self.work[pairs], self.num_ranks, num_microbatches, self.max_tokens)

    def _pairs(self, first_sample: int) -> Sequence[int]:
        return [self.pair_of_sample(first_sample + place) for place in range(self.global_batch_size)]
