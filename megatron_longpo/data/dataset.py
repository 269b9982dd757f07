"""The samples of a run: which pair a sample is depends on its index and the seed alone.

Megatron counts the samples that a run has consumed and stores the count in its checkpoints; from there a resumed run
goes on with the pairs that the interrupted one had not seen. packing.py says which rank runs which samples.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.render import Context, RenderedPair, TrunkAndBranches
from megatron_longpo.errors import UserError

Conversation = dict[str, NDArray[np.int64]]
"""``trunk`` [T], ``chosen`` [C] and ``rejected`` [R] (token ids, each branch with its last prompt token),
``chosen_spans`` and ``rejected_spans`` [num_turns, 2] (half-open, counted in the branch).
"""
Sample = dict[str, NDArray[np.int64] | NDArray[np.float64] | Conversation | list[Conversation]]
"""One pair: ``long``, its long Conversation; ``pair_index`` [] (int64); ``weight`` [] (float64: 1 for a pair that
counts, 0 for one that only fills up a batch); for each context with reference log-probs ``reference_CONTEXT_chosen``
and ``reference_CONTEXT_rejected`` [num_turns] (float64, nats); and, if asked for, ``short``: the Conversation of each
turn on its short context.
"""


class ReferenceLogp(Protocol):
    """Reference log-probs of a whole dataset: per pair [num_turns, 2], nats, chosen then rejected."""

    def __len__(self) -> int: ...

    def __getitem__(self, pair_index: int, /) -> NDArray[np.float64]: ...


References = Mapping[Context, ReferenceLogp]
"""What a reference gave on each context that is needed."""


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
        references: cover all pairs of ``reader``, not only this split's.
        with_short: samples hold the short conversations too.
    """

    def __init__(
        self,
        reader: PairReader,
        pair_of_sample: Callable[[int], int],
        references: References | None = None,
        with_short: bool = False,
    ) -> None:
        self._pair_of_sample = pair_of_sample
        self._samples = _Samples(reader, references or {}, with_short)

    def __getitem__(self, sample_index: int) -> Sample:
        return self._samples.of_pair(self._pair_of_sample(sample_index))


class HeldOutPairs(Dataset[Sample]):
    """Evaluation samples: every evaluation sees the same pairs in the same order, so that their means compare.

    Args:
        pair_indices: the pairs of this split, as indices of ``reader``; not empty.
        period: samples of one evaluation, at least as many as pairs: Megatron draws eval_iters *
            eval_global_batch_size. The surplus has weight 0, so an evaluation is the mean over exactly these pairs.
        references, with_short: as in `PairDataset`.
    """

    def __init__(
        self,
        reader: PairReader,
        pair_indices: Sequence[int],
        period: int,
        references: References | None = None,
        with_short: bool = False,
    ) -> None:
        assert 0 < len(pair_indices) <= period, "an evaluation sees every pair"
        self._pair_indices = pair_indices
        self._period = period
        self._samples = _Samples(reader, references or {}, with_short)

    def __getitem__(self, sample_index: int) -> Sample:
        place, num_pairs = sample_index % self._period, len(self._pair_indices)
        return self._samples.of_pair(self._pair_indices[place % num_pairs], weight=float(place < num_pairs))


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


def conversation_arrays(conversation: TrunkAndBranches) -> Conversation:
    """A conversation as the model takes it."""
    arrays = {
        "trunk": conversation.trunk,
        "chosen": conversation.chosen.tokens,
        "rejected": conversation.rejected.tokens,
        "chosen_spans": conversation.chosen.spans,
        "rejected_spans": conversation.rejected.spans,
    }
    return {name: array.astype(np.int64) for name, array in arrays.items()}


class _Samples:
    """Makes the sample of a pair."""

    def __init__(self, reader: PairReader, references: References, with_short: bool) -> None:
        assert all(len(logp) == len(reader) for logp in references.values()), "one reference entry per pair"
        self._reader, self._references, self._with_short = reader, references, with_short

    def of_pair(self, pair_index: int, weight: float = 1.0) -> Sample:
        pair = self._reader[pair_index]
        self._check_tokens(pair, pair_index)
        sample: Sample = {
            "long": conversation_arrays(pair.long),
            "pair_index": np.array(pair_index, np.int64),
            "weight": np.array(weight),
        }
        for context, reference_logp in self._references.items():
            logp_K2 = np.asarray(reference_logp[pair_index], np.float64)
            assert logp_K2.shape == pair.long.chosen.spans.shape, "one reference row per turn, chosen and rejected"
            for answer, logp_K in zip(("chosen", "rejected"), logp_K2.T.copy(), strict=True):
                sample[f"reference_{context}_{answer}"] = logp_K
        if self._with_short:
            sample["short"] = [conversation_arrays(turn) for turn in pair.short]
        return sample

    def _check_tokens(self, pair: RenderedPair, pair_index: int) -> None:
        """On a GPU a token id outside the vocabulary ends the run without a word of the pair that it stands in."""
        parts = [
            tokens for one in (pair.long, *pair.short) for tokens in (one.trunk, one.chosen.tokens, one.rejected.tokens)
        ]
        vocab_size = self._reader.manifest.vocab_size
        highest, lowest = max(int(tokens.max()) for tokens in parts), min(int(tokens.min()) for tokens in parts)
        if lowest < 0 or highest >= vocab_size:
            raise UserError(
                f"{self._reader.named(pair_index)} of {self._reader.prefix} holds token "
                f"{lowest if lowest < 0 else highest}, the vocabulary is {vocab_size}: damaged; build it again"
            )
