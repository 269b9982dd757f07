"""data/dataset.py: the samples, the shuffle, splits as Megatron rounds."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_longpo.data.dataset import HeldOutPairs, PairDataset, PairOrder, split_pairs
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


def drawn(order: PairOrder, num_samples: int) -> list[int]:
    return [order(index) for index in range(num_samples)]


def test_a_sample_is_the_pair(reader: PairReader) -> None:
    reference = [np.arange(2.0 * turns).reshape(turns, 2) - index for index, turns in enumerate(TURNS)]
    order = PairOrder(range(len(reader)), seed=1)
    dataset = PairDataset(reader, order, {"short": reference, "long": reference[:]})
    for index in range(7):
        sample = dataset[index]
        pair_index = order(index)
        long = reader[pair_index].long
        expected = {
            "trunk": long.trunk,
            "chosen": long.chosen.tokens,
            "rejected": long.rejected.tokens,
            "chosen_spans": long.chosen.spans,
            "rejected_spans": long.rejected.spans,
        }
        floats = {"weight": np.array(1.0)}
        for context in ("short", "long"):
            floats[f"reference_{context}_chosen"] = reference[pair_index][:, 0]
            floats[f"reference_{context}_rejected"] = reference[pair_index][:, 1]
        assert sample.keys() == {"long", "pair_index"} | floats.keys()
        assert sample["pair_index"] == pair_index
        assert sample["long"].keys() == expected.keys()
        for name, value in expected.items():
            assert sample["long"][name].dtype == np.int64
            assert np.array_equal(sample["long"][name], value)
        for name, value in floats.items():
            assert sample[name].dtype == np.float64
            assert np.array_equal(sample[name], value)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_sample_with_the_short_conversations(reader: PairReader, held_out: bool) -> None:
    everything = range(len(reader))
    if held_out:
        dataset = HeldOutPairs(reader, everything, period=7, with_short=True)
    else:
        dataset = PairDataset(reader, PairOrder(everything, seed=1), with_short=True)
    for sample in (dataset[index] for index in everything):
        short = reader[int(sample["pair_index"])].short
        assert len(sample["short"]) == len(short)
        for found, turn in zip(sample["short"], short, strict=True):
            branches = (("chosen", turn.chosen), ("rejected", turn.rejected))
            expected = {"trunk": turn.trunk}
            expected |= {name: branch.tokens for name, branch in branches}
            expected |= {f"{name}_spans": branch.spans for name, branch in branches}
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].dtype == np.int64
                assert np.array_equal(found[name], value), name


def test_without_a_reference_there_is_no_reference(reader: PairReader) -> None:
    assert "reference_chosen_logp" not in PairDataset(reader, PairOrder(range(7), seed=1))[0]


def test_every_epoch_is_another_permutation_of_the_split() -> None:
    pairs = range(2, 7)
    samples = drawn(PairOrder(pairs, seed=3), 50)
    epochs = [tuple(samples[start : start + 5]) for start in range(0, 50, 5)]
    assert all(sorted(epoch) == list(pairs) for epoch in epochs)
    assert len(set(epochs)) > 5
    assert drawn(PairOrder(pairs, seed=3), 50) == samples
    assert drawn(PairOrder(pairs, seed=4), 50) != samples


def test_the_shuffle_is_frozen() -> None:
    """A run started with an older version of this program or of numpy goes on with the pairs it has not seen."""
    assert drawn(PairOrder(range(7), seed=42), 14) == [3, 6, 4, 0, 1, 5, 2, 1, 2, 5, 6, 0, 3, 4]


def test_a_sample_depends_on_its_index_only() -> None:
    samples, order = drawn(PairOrder(range(7), seed=5), 30), PairOrder(range(7), seed=5)
    assert [order(index) for index in (29, 0, 13, 7, 6, 28)] == [samples[index] for index in (29, 0, 13, 7, 6, 28)]


def test_every_evaluation_sees_every_held_out_pair_once(reader: PairReader) -> None:
    held_out = HeldOutPairs(reader, range(4, 7), period=5)
    samples = [held_out[index] for index in range(10)]
    assert [int(sample["pair_index"]) for sample in samples] == [4, 5, 6, 4, 5] * 2
    assert [float(sample["weight"]) for sample in samples] == [1, 1, 1, 0, 0] * 2


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


def test_a_damaged_pair_is_named(tmp_path: Path) -> None:
    """A token that no vocabulary has, in the last of three pairs."""
    prefix = tmp_path / "set"
    write(prefix, make_pairs(0, [1, 1, 2]))
    size = prefix.with_suffix(".bin").stat().st_size
    with prefix.with_suffix(".bin").open("r+b") as file:
        file.seek(size - 2)
        file.write(b"\xff\xff")
    reader = PairReader(prefix)
    dataset = PairDataset(reader, range(3).__getitem__)
    assert dataset[1]["pair_index"] == 1
    with pytest.raises(UserError, match=rf"^{re.escape(reader.named(2))} of .*set holds token \S+, the vocabulary is"):
        dataset[2]
