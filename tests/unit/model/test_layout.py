"""Index arithmetic of trees, against lists written by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.model.layout import (
    TreeLayout,
    branch_segments,
    num_real_trunk_keys,
    pack_layout,
    tree_layout,
)
from megatron_longpo.model.targets import NllTokens, Targets, tree_logps, tree_targets
from megatron_longpo.model.tree_tokens import input_tokens, positions, rank_tokens

# Both branches open with 13. Chosen answers 20 21, is instructed 30, answers 22; rejected answers 40, then 41 42.
TRUNK, CHOSEN, REJECTED = [10, 11, 12], [13, 20, 21, 30, 22], [13, 40, 30, 41, 42]
CHOSEN_SPANS, REJECTED_SPANS = [[1, 3], [4, 5]], [[1, 2], [3, 5]]


def example(nll_tokens: NllTokens | None) -> tuple[TreeLayout, torch.Tensor, Targets]:
    layout = tree_layout(3, (5, 5))
    tokens = input_tokens(layout, torch.tensor(TRUNK), [torch.tensor(CHOSEN), torch.tensor(REJECTED)])
    spans = torch.tensor(CHOSEN_SPANS), torch.tensor(REJECTED_SPANS)
    return layout, tokens, tree_targets(layout, tokens, spans, nll_tokens)


@pytest.mark.parametrize("cp_size, multiple, padded", [(1, 1, 37), (1, 8, 40), (2, 8, 40), (2, 6, 48), (3, 128, 384)])
def test_a_padded_trunk_is_shared_and_a_multiple(cp_size: int, multiple: int, padded: int) -> None:
    layout = tree_layout(37, (5, 7), cp_size, multiple)
    assert (layout.padded_trunk, layout.trunk_padding, layout.padding) == (
        padded,
        padded - 37,
        padded - 37 + -12 % cp_size,
    )


def test_tokens_and_positions() -> None:
    layout, tokens, _ = example("all")
    assert tokens.tolist() == [10, 11, 12, 13, 20, 21, 30, 22, 13, 40, 30, 41, 42]
    assert positions(layout).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    assert layout.length == 13 and layout.padding == 0


def test_targets_over_all() -> None:
    """Every token of trunk + chosen predicts the next one; of rejected only what predicts a response token."""
    _, _, targets = example("all")
    assert targets.rows_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11]
    assert targets.labels_N.tolist() == [11, 12, 13, 20, 21, 30, 22, 40, 41, 42]
    assert targets.segment_N.tolist() == [4, 4, 4, 0, 0, 4, 1, 2, 3, 3]
    assert targets.in_nll_N.tolist() == [True] * 7 + [False] * 3


def test_targets_over_responses() -> None:
    _, _, targets = example("response")
    assert targets.rows_N.tolist() == [3, 4, 6, 8, 10, 11]
    assert targets.in_nll_N.tolist() == [True] * 3 + [False] * 3


def test_sums() -> None:
    _, _, targets = example("all")
    other, logps = tree_logps(-torch.cat((torch.zeros(10), torch.arange(1.0, 11.0))), [targets, targets])
    assert other.logp_BK.tolist() == [[0.0, 0.0], [0.0, 0.0]] and other.nll.item() == 0.0
    assert logps.logp_BK.tolist() == [[-9.0, -7.0], [-8.0, -19.0]]
    assert (logps.nll.item(), logps.num_in_nll) == (28.0, 7)
    assert logps.num_tokens_BK.tolist() == [[2, 1], [1, 2]]


def test_targets_without_an_nll() -> None:
    _, _, targets = example(None)
    assert targets.rows_N.tolist() == [3, 4, 6, 8, 10, 11]
    assert targets.num_in_nll == 0 and not targets.in_nll_N.any()


def test_one_branch() -> None:
    """It is the tree of two without the other branch: nothing of that is scored or paid for."""
    layout = tree_layout(3, (5,))
    tokens = input_tokens(layout, torch.tensor(TRUNK), [torch.tensor(REJECTED)])
    targets = tree_targets(layout, tokens, [torch.tensor(REJECTED_SPANS)], "all")
    assert tokens.tolist() == [*TRUNK, *REJECTED] and layout.length == 8
    assert targets.labels_N.tolist() == [11, 12, 13, 40, 30, 41, 42]
    assert targets.segment_N.tolist() == [2, 2, 2, 0, 2, 1, 1]
    assert targets.num_in_nll == 7


def test_three_branches() -> None:
    layout = tree_layout(3, (2, 3, 1), cp_size=2)
    assert layout.branch_slices == [slice(4, 6), slice(6, 9), slice(9, 10)]
    assert positions(layout).tolist() == [0, 1, 2, 0, 3, 4, 3, 4, 5, 3]
    assert branch_segments(layout, 1) == [(slice(3, 5), slice(2, 3)), (slice(5, 6), slice(5, 5))]


@pytest.mark.parametrize("lengths", [(0, (1, 1)), (1, (0, 1)), (1, (1, 0)), (1, ()), (1, (1,), -1), (1, (1,), 0, -1)])
def test_empty_parts_are_refused(lengths: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        TreeLayout(*lengths)


@pytest.mark.parametrize("lengths", [(9, (1, 2), 0, 1, 2), (8, (1, 2), 0, 0, 2)])
def test_uneven_parts_are_refused(lengths: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="2 context-parallel ranks cannot share this evenly"):
        TreeLayout(*lengths)


def test_two_ranks_share_by_hand() -> None:
    """Trunk 0-2 and one token of padding in four chunks; branches 4-14 and one of padding in two pieces."""
    layout = tree_layout(3, (5, 6), cp_size=2)
    assert (layout.trunk_padding, layout.branch_padding) == (1, 1)
    assert rank_tokens(layout, 0).tolist() == [0, 3, 4, 5, 6, 7, 8, 9]
    assert rank_tokens(layout, 1).tolist() == [1, 2, 10, 11, 12, 13, 14, 15]
    assert [num_real_trunk_keys(layout, rank) for rank in (0, 1)] == [1, 2]
    assert branch_segments(layout, 0) == [(slice(0, 5), slice(0, 0)), (slice(5, 6), slice(5, 5))]
    assert branch_segments(layout, 1) == [(slice(6, 11), slice(5, 6))]


def test_two_pairs_share_a_micro_batch_by_hand() -> None:
    layout = pack_layout([tree_layout(3, (5, 6), 2), tree_layout(1, (1, 1), 2)], multiple=4)
    assert layout.parts == [slice(0, 8), slice(8, 11)]  # 4 + 12 tokens on two ranks, then 4 + 2
    assert (layout.tail, layout.length) == (1, 12)


@given(
    trunk=st.integers(1, 60),
    branches=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    cp_size=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_ranks_hold_everything_once(trunk: int, branches: list[int], cp_size: int) -> None:
    layout = tree_layout(trunk, branches, cp_size)
    by_rank = [rank_tokens(layout, rank) for rank in range(cp_size)]
    assert sorted(torch.cat(by_rank).tolist()) == list(range(layout.length))
    assert {len(own) for own in by_rank} == {layout.rank_length}
    assert layout.padding < 3 * cp_size
    for rank, own in enumerate(by_rank):
        places = own[: layout.rank_trunk]
        num_keys = num_real_trunk_keys(layout, rank)
        assert (places[:num_keys] < trunk).all() and (places[num_keys:] >= trunk).all()
        real = [place.item() for place in own[layout.rank_trunk :] if place < layout.length - layout.branch_padding]
        segments = branch_segments(layout, rank)
        assert [place + layout.padded_trunk for part, _ in segments for place in range(part.start, part.stop)] == real
        starts = {branch.start - layout.padded_trunk for branch in layout.branch_slices}
        assert all(before.stop == part.start and before.start in starts for part, before in segments)


@pytest.mark.parametrize("cp_size", [1, 2, 4])
def test_targets_of_all_ranks_are_the_targets(cp_size: int) -> None:
    layout = tree_layout(3, (5, 5), cp_size)
    tokens = input_tokens(layout, torch.tensor(TRUNK), [torch.tensor(CHOSEN), torch.tensor(REJECTED)])
    whole = tree_targets(layout, tokens, [torch.tensor(CHOSEN_SPANS), torch.tensor(REJECTED_SPANS)], "all")
    _, _, unpadded = example("all")
    assert whole.labels_N.tolist() == unpadded.labels_N.tolist()
    found = []
    for rank in range(cp_size):
        own = rank_tokens(layout, rank)
        part = whole.on_rank(own, layout.length)
        assert part.num_in_nll == whole.num_in_nll == 7
        rows = own[part.rows_N].tolist()
        found += zip(rows, part.labels_N.tolist(), part.segment_N.tolist(), part.in_nll_N.tolist(), strict=True)
    lists = (x.tolist() for x in (whole.rows_N, whole.labels_N, whole.segment_N, whole.in_nll_N))
    assert sorted(found) == list(zip(*lists, strict=True))
