"""FLOPs of a tree against counting what each token sees."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.model.flops import separate_flops, squared_lengths, tree_flops

OPTIONS = {
    "num_layers": 3,
    "hidden_size": 8,
    "ffn_hidden_size": 20,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 6,
    "vocab_size": 11,
}
TREES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4)


def seen(trunk: int, chosen: int, rejected: int) -> int:
    """Keys that the queries see, itself included, one after the other."""
    of_branches = sum(trunk + place for branch in (chosen, rejected) for place in range(1, branch + 1))
    return sum(range(1, trunk + 1)) + of_branches


@given(TREES)
def test_squares_are_twice_what_is_seen(trees: list[tuple[int, int, int]]) -> None:
    """But for the diagonal: of a causal square Megatron counts the half."""
    squares_T = squared_lengths(np.array(trees))
    assert (squares_T + np.array(trees).sum(1)).tolist() == [2 * seen(*tree) for tree in trees]


def test_flops_by_hand() -> None:
    weights = 3 * (8 * (4 + 2 + 2) * 6 + 4 * 6 * 8 + 3 * 8 * 20) + 8 * 11
    trunk, chosen, rejected = 7, 2, 3
    attended = seen(trunk, chosen, rejected) - 12 / 2
    found = tree_flops(OPTIONS, np.array([[trunk, chosen, rejected]]))
    assert found.tolist() == [2 * weights * 12 + 4 * 3 * 4 * 6 * attended]


@given(TREES)
def test_separate_sequences_are_trees_of_one_branch(trees: list[tuple[int, int, int]]) -> None:
    alone = [[(trunk, branch, 0) for branch in branches if branch] for trunk, *branches in trees]
    expected = [tree_flops(OPTIONS, np.array(sequences)).sum() for sequences in alone]
    assert separate_flops(OPTIONS, np.array(trees)).tolist() == expected
