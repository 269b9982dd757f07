"""data/dataset.py: the shuffle, resuming and sharding through Megatron's own sampler, splits as Megatron rounds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from torch.utils.data import DataLoader

from megatron_longpo.data.dataset import HeldOutPairs, PairDataset, split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.errors import UserError
from tests.unit.data.test_indexed import make_pairs, write

TURNS = [1, 3, 2, 1, 1, 2, 1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PairReader:
    """Seven pairs."""
    prefix = tmp_path_factory.mktemp("data") / "set"
    write(prefix, make_pairs(0, TURNS))
    return PairReader(prefix)


def order(dataset: PairDataset | HeldOutPairs) -> list[int]:
    return [int(dataset[index]["pair_index"]) for index in range(len(dataset))]


def test_a_sample_is_the_pair(reader: PairReader) -> None:
    reference = [np.arange(2.0 * turns).reshape(turns, 2) - index for index, turns in enumerate(TURNS)]
    dataset = PairDataset(reader, range(len(reader)), 7, seed=1, reference_logp=reference)
    for index in range(7):
        sample = dataset[index]
        pair_index = int(sample["pair_index"])
        long = reader[pair_index].long
        expected = {
            "trunk": long.trunk,
            "chosen": long.chosen.tokens,
            "rejected": long.rejected.tokens,
            "chosen_spans": long.chosen.spans,
            "rejected_spans": long.rejected.spans,
            "pair_index": np.array(pair_index),
        }
        floats = {
            "weight": np.array(1.0),
            "reference_chosen_logp": reference[pair_index][:, 0],
            "reference_rejected_logp": reference[pair_index][:, 1],
        }
        assert sample.keys() == expected.keys() | floats.keys()
        for name, value in expected.items():
            assert sample[name].dtype == np.int64
            assert np.array_equal(sample[name], value)
        for name, value in floats.items():
            assert sample[name].dtype == np.float64
            assert np.array_equal(sample[name], value)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_sample_with_the_short_conversations(reader: PairReader, held_out: bool) -> None:
    """Collated as Megatron's loader does (training/datasets/data_samplers.py): a batch dim of 1 at every depth."""
    everything = range(len(reader))
    if held_out:
        dataset = HeldOutPairs(reader, everything, 7, period=7, with_short=True)
    else:
        dataset = PairDataset(reader, everything, 7, seed=1, with_short=True)
    for sample in DataLoader(dataset, batch_size=1):
        short = reader[int(sample["pair_index"])].short
        assert len(sample["short"]) == len(short)
        for found, turn in zip(sample["short"], short, strict=True):
            branches = (("chosen", turn.chosen), ("rejected", turn.rejected))
            expected = {"trunk": turn.trunk}
            expected |= {name: branch.tokens for name, branch in branches}
            expected |= {f"{name}_spans": branch.spans for name, branch in branches}
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].dtype == torch.int64
                assert np.array_equal(found[name].numpy(), value[None]), name


def test_without_a_reference_there_is_no_reference(reader: PairReader) -> None:
    assert "reference_chosen_logp" not in PairDataset(reader, range(7), 1, seed=1)[0]


def test_every_epoch_is_another_permutation_of_the_split(reader: PairReader) -> None:
    pairs = range(2, 7)
    drawn = order(PairDataset(reader, pairs, 50, seed=3))
    epochs = [tuple(drawn[start : start + 5]) for start in range(0, 50, 5)]
    assert all(sorted(epoch) == list(pairs) for epoch in epochs)
    assert len(set(epochs)) > 5
    assert order(PairDataset(reader, pairs, 50, seed=3)) == drawn
    assert order(PairDataset(reader, pairs, 50, seed=4)) != drawn


def test_the_shuffle_is_frozen(reader: PairReader) -> None:
    """A run started with an older version of this program or of numpy goes on with the pairs it has not seen."""
    assert order(PairDataset(reader, range(7), 14, seed=42)) == [3, 6, 4, 0, 1, 5, 2, 1, 2, 5, 6, 0, 3, 4]


def test_a_sample_depends_on_its_index_only(reader: PairReader) -> None:
    drawn = order(PairDataset(reader, range(7), 30, seed=5))
    dataset = PairDataset(reader, range(7), 30, seed=5)
    for index in (29, 0, 13, 7, 6, 28):
        assert int(dataset[index]["pair_index"]) == drawn[index]
    for index in (-1, 30):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_megatrons_sampler_shards_and_resumes(reader: PairReader, num_ranks: int) -> None:
    from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

    dataset = PairDataset(reader, range(7), 24, seed=6)

    def drawn(consumed: int) -> list[int]:
        """Pairs in the order of training: batch by batch, rank by rank."""
        samplers = [MegatronPretrainingSampler(len(dataset), consumed, 2, rank, num_ranks) for rank in range(num_ranks)]
        batches = zip(*samplers, strict=True)
        return [int(dataset[index]["pair_index"]) for ranks in batches for batch in ranks for index in batch]

    whole = drawn(0)
    assert whole == order(dataset)
    assert drawn(8) == whole[8:]


def test_every_evaluation_sees_every_held_out_pair_once(reader: PairReader) -> None:
    held_out = HeldOutPairs(reader, range(4, 7), 10, period=5)
    assert order(held_out) == [4, 5, 6, 4, 5] * 2
    assert [float(held_out[index]["weight"]) for index in range(10)] == [1, 1, 1, 0, 0] * 2
    with pytest.raises(IndexError):
        held_out[10]


@given(
    num_pairs=st.integers(3, 500),
    weights=st.lists(st.integers(0, 100) | st.floats(0.01, 100).map(lambda value: round(value, 2)), max_size=3),
)
def test_splits_are_megatrons(num_pairs: int, weights: list[float]) -> None:
    split = ",".join(map(str, weights))
    if not sum(weights):
        with pytest.raises(UserError, match="give one to three weights"):
            split_pairs(num_pairs, split)
        return
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    bounds = [(0.0, 0.0) if part is None else part for part in matrix]
    expected = [range(round(start * num_pairs), round(end * num_pairs)) for start, end in bounds]
    if any(part is not None and not pairs for part, pairs in zip(matrix, expected, strict=True)):
        with pytest.raises(UserError, match="leaves no"):
            split_pairs(num_pairs, split)
        return
    parts = split_pairs(num_pairs, split)
    assert [list(part) for part in parts] == [list(part) for part in expected]
    assert [index for part in parts for index in part] == list(range(num_pairs))


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "90;10", "-1,2", "nan,1", "inf", "0,0"])
def test_a_split_that_is_none_is_refused(split: str) -> None:
    with pytest.raises(UserError, match="give one to three weights"):
        split_pairs(10, split)


def test_a_part_that_would_get_no_pair_is_refused() -> None:
    with pytest.raises(UserError, match="'99,1,0' leaves no validation pair of 12"):
        split_pairs(12, "99,1,0")
