"""data/trees.py: which trees of a dataset are read, against the pairs themselves."""

from pathlib import Path

import numpy as np
import pytest

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.trees import TreeKind, tree_lengths
from tests.unit.data.test_indexed import make_pairs, write

TURNS = [1, 3, 2, 1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PairReader:
    prefix: Path = tmp_path_factory.mktemp("data") / "set"
    write(prefix, make_pairs(0, TURNS))
    return PairReader(prefix)


def test_all_lengths(reader: PairReader) -> None:
    """Of every conversation, in the dataset's order."""
    lengths_C3, pair_C, is_long_C = reader.all_lengths()
    conversations = [(index, one) for index in range(4) for one in (reader[index].long, *reader[index].short)]
    assert lengths_C3.tolist() == [list(one.lengths) for _, one in conversations]
    assert pair_C.tolist() == [index for index, _ in conversations]
    assert np.flatnonzero(is_long_C).tolist() == [0, 2, 6, 9]


def test_padded_trunks(reader: PairReader) -> None:
    """Only trunks grow; what a pair is dealt out by grows with them."""
    trees = tree_lengths(reader, [TreeKind("long", ("chosen",)), TreeKind("short")])
    padded = trees.padded(8)
    assert padded.lengths_T3[:, 0].tolist() == [-(-trunk // 8) * 8 for trunk in trees.lengths_T3[:, 0].tolist()]
    assert padded.lengths_T3[:, 1:].tolist() == trees.lengths_T3[:, 1:].tolist()
    assert (padded.tokens >= trees.tokens).all() and padded.tokens.sum() > trees.tokens.sum()
    assert trees.padded(1).lengths_T3.tolist() == trees.lengths_T3.tolist()
    assert (
        trees.longest_trunk == max(trees.lengths_T3[:, 0].tolist()) and trees.longest_trunk < padded.longest_trunk <= 32
    )


def test_the_trees_of_solopo(reader: PairReader) -> None:
    """A long trunk with the chosen branch, and a short one a turn with both."""
    trees = tree_lengths(reader, [TreeKind("long", ("chosen",)), TreeKind("short")])
    assert len(trees.pair_T) == len(TURNS) + sum(TURNS)
    expected = []
    for index in range(4):
        pair = reader[index]
        expected.append(
            pair.long.lengths.trunk + pair.long.lengths.chosen + sum(sum(one.lengths) for one in pair.short)
        )
    assert trees.tokens.tolist() == expected
    assert (trees.lengths_T3[:4, 2] == 0).all()


def test_the_tree_of_sft_rejected(reader: PairReader) -> None:
    trees = tree_lengths(reader, [TreeKind("long", ("rejected",))])
    assert trees.lengths_T3.tolist() == [
        [one.trunk, 0, one.rejected] for one in (reader[i].long.lengths for i in range(4))
    ]
