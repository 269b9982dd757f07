"""The samples of a run: which pair a sample is depends on its index and the seed alone.

Megatron counts the samples that a run has consumed and stores the count in its checkpoints; from there a resumed run
goes on with the pairs that the interrupted one had not seen. packing.py says which rank runs which samples.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.errors import UserError

Sample = dict[str, NDArray[np.int64] | NDArray[np.float64]]
"""One pair, as int64 arrays: ``trunk`` [T], ``chosen`` [C] and ``rejected`` [R] (token ids, each branch with its
opener), ``chosen_spans`` and ``rejected_spans`` [num_turns, 2] (half-open, counted in the branch), ``pair_index`` [];
``weight`` [] (float64: 1 for a pair that counts, 0 for one that only fills up a batch); and, where a reference is
given, ``reference_chosen_logp`` and ``reference_rejected_logp`` [num_turns] (float64, nats).
"""


class ReferenceLogp(Protocol):
    """Reference log-probs of a whole dataset: per pair [num_turns, 2], nats, chosen then rejected."""

    def __len__(self) -> int: ...

    def __getitem__(self, pair_index: int, /) -> NDArray[np.float64]: ...


class PairOrder:
    """Which pair each training sample is: epoch after epoch, each a permutation of ``pair_indices``.

    Args:
        pair_indices: the training pairs; not empty.
        seed: of the shuffle; epoch and seed give the permutation.
    """

    def __init__(self, pair_indices: Sequence[int], seed: int) -> None:
        assert len(pair_indices) > 0, "a split without pairs has no order"
        self._pair_indices, self._seed = pair_indices, seed
        self._permutation = (-1, np.empty(0, np.int64))

    def __call__(self, sample_index: int) -> int:
        epoch, place = divmod(sample_index, len(self._pair_indices))
        if self._permutation[0] != epoch:
            # RandomState's streams are frozen for good, a Generator's may change with numpy: a resumed run must not.
            order = np.random.RandomState([self._seed % 2**32, epoch]).permutation(len(self._pair_indices))
            self._permutation = (epoch, order)
        return self._pair_indices[int(self._permutation[1][place])]


class PairDataset(Dataset[Sample]):
    """Training samples, without end, in the order of ``pair_of_sample``.

    Args:
        reference_logp: covers all pairs of ``reader``, not only this split's.
    """

    def __init__(
        self, reader: PairReader, pair_of_sample: Callable[[int], int], reference_logp: ReferenceLogp | None = None
    ) -> None:
        assert reference_logp is None or len(reference_logp) == len(reader), "one reference entry per pair"
        self._reader, self._pair_of_sample, self._reference_logp = reader, pair_of_sample, reference_logp

    def __getitem__(self, sample_index: int) -> Sample:
        return _sample(self._reader, self._pair_of_sample(sample_index), self._reference_logp)


class HeldOutPairs(Dataset[Sample]):
    """Evaluation samples: every evaluation sees the same pairs in the same order, so that their means compare.

    Args:
        pair_indices: the pairs of this split, as indices of ``reader``; not empty.
        period: samples of one evaluation, at least as many as pairs: Megatron draws eval_iters *
            eval_global_batch_size. The surplus has weight 0, so an evaluation is the mean over exactly these pairs.
        reference_logp: as in `PairDataset`.
    """

    def __init__(
        self,
        reader: PairReader,
        pair_indices: Sequence[int],
        period: int,
        reference_logp: ReferenceLogp | None = None,
    ) -> None:
        assert 0 < len(pair_indices) <= period, "an evaluation sees every pair"
        assert reference_logp is None or len(reference_logp) == len(reader), "one reference entry per pair"
        self._reader = reader
        self._pair_indices = pair_indices
        self._period = period
        self._reference_logp = reference_logp

    def __getitem__(self, sample_index: int) -> Sample:
        place, num_pairs = sample_index % self._period, len(self._pair_indices)
        weight = float(place < num_pairs)
        return _sample(self._reader, self._pair_indices[place % num_pairs], self._reference_logp, weight)


def split_pairs(num_pairs: int, split: str) -> tuple[range, range, range]:
    """The contiguous training, validation and test pairs of Megatron's ``--split`` string, such as ``90,10,0``.

    Weights are normalised and bounds rounded as Megatron does (parse_and_normalize_split in
    megatron/core/datasets/blended_megatron_dataset_config.py and _build_megatron_dataset_splits in
    blended_megatron_dataset_builder.py, mcore 0.19.2).

    Raises:
        UserError: the string is not one to three weights, or a part with a weight would get no pair.
    """
    try:
        weights = [float(part) for part in split.split(",")]
    except ValueError:
        weights = []
    if (
        not 1 <= len(weights) <= 3
        or not all(isfinite(weight) and weight >= 0 for weight in weights)
        or not sum(weights)
    ):
        raise UserError(f"--split {split!r}: give one to three weights for training, validation and test, like 90,10,0")
    weights += [0.0] * (3 - len(weights))
    fractions = [sum(weights[:count]) / sum(weights) for count in range(4)]
    bounds = [round(fraction * num_pairs) for fraction in fractions]
    train, valid, test = (range(start, end) for start, end in pairwise(bounds))
    for name, weight, part in zip(("training", "validation", "test"), weights, (train, valid, test), strict=True):
        if weight > 0 and not part:
            raise UserError(f"--split {split!r} leaves no {name} pair of {num_pairs}; give that part more weight, or 0")
    return train, valid, test


def _sample(reader: PairReader, pair_index: int, reference_logp: ReferenceLogp | None, weight: float = 1.0) -> Sample:
    long = reader[pair_index].long
    sample: Sample = {
        "trunk": long.trunk.astype(np.int64),
        "chosen": long.chosen.tokens.astype(np.int64),
        "rejected": long.rejected.tokens.astype(np.int64),
        "chosen_spans": long.chosen.spans.astype(np.int64),
        "rejected_spans": long.rejected.spans.astype(np.int64),
        "pair_index": np.array(pair_index, np.int64),
        "weight": np.array(weight),
    }
    if reference_logp is not None:
        logp = np.asarray(reference_logp[pair_index], np.float64)
        assert logp.shape == long.chosen.spans.shape, "one reference row per turn, chosen and rejected"
        sample["reference_chosen_logp"], sample["reference_rejected_logp"] = logp.T.copy()
    return sample
