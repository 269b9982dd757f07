"""Index arithmetic of a pair, against lists written by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.model.layout import (
    PairLayout,
    input_tokens,
    num_own_keys,
    own_segments,
    pack_layout,
    pair_layout,
    positions,
    share,
)
from megatron_longpo.model.targets import Targets, pair_logps, pair_targets

# Both branches open with 13. Chosen answers 20 21, is instructed 30, answers 22; rejected answers 40, then 41 42.
TRUNK, CHOSEN, REJECTED = [10, 11, 12], [13, 20, 21, 30, 22], [13, 40, 30, 41, 42]
CHOSEN_SPANS, REJECTED_SPANS = [[1, 3], [4, 5]], [[1, 2], [3, 5]]


def example(nll_over_all: bool) -> tuple[PairLayout, torch.Tensor, Targets]:
    layout = pair_layout(3, 5, 5)
    tokens = input_tokens(layout, *(torch.tensor(part) for part in (TRUNK, CHOSEN, REJECTED)))
    spans = torch.tensor(CHOSEN_SPANS), torch.tensor(REJECTED_SPANS)
    return layout, tokens, pair_targets(layout, tokens, *spans, nll_over_all)


def test_tokens_and_positions() -> None:
    layout, tokens, _ = example(True)
    assert tokens.tolist() == [10, 11, 12, 13, 20, 21, 30, 22, 13, 40, 30, 41, 42]
    assert positions(layout).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    assert layout.length == 13 and layout.padding == 0


def test_targets_over_all() -> None:
    """Every token of trunk + chosen predicts the next one; of rejected only what predicts a response token."""
    _, _, targets = example(True)
    assert targets.rows_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11]
    assert targets.labels_N.tolist() == [11, 12, 13, 20, 21, 30, 22, 40, 41, 42]
    assert targets.segment_N.tolist() == [4, 4, 4, 0, 0, 4, 1, 2, 3, 3]
    assert targets.in_nll_N.tolist() == [True] * 7 + [False] * 3


def test_targets_over_responses() -> None:
    _, _, targets = example(False)
    assert targets.rows_N.tolist() == [3, 4, 6, 8, 10, 11]
    assert targets.in_nll_N.tolist() == [True] * 3 + [False] * 3


def test_sums() -> None:
    _, _, targets = example(True)
    other, logps = pair_logps(-torch.cat((torch.zeros(10), torch.arange(1.0, 11.0))), [targets, targets])
    assert other.chosen_K.tolist() == [0.0, 0.0] and other.nll.item() == 0.0
    assert logps.chosen_K.tolist() == [-9.0, -7.0] and logps.rejected_K.tolist() == [-8.0, -19.0]
    assert logps.nll.item() == pytest.approx(28 / 7)


@pytest.mark.parametrize("lengths", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, -1), (1, 1, 1, 0, -1)])
def test_empty_parts_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PairLayout(*lengths)


@pytest.mark.parametrize("lengths", [(9, 1, 2, 0, 1, 2), (8, 1, 2, 0, 0, 2)])
def test_uneven_shares_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 context-parallel ranks cannot share this evenly"):
        PairLayout(*lengths)


def test_two_ranks_share_by_hand() -> None:
    """Trunk 0-2 and one token of padding in four chunks; branches 4-14 and one of padding in two pieces."""
    layout = pair_layout(3, 5, 6, num_shares=2)
    assert (layout.trunk_padding, layout.branch_padding) == (1, 1)
    assert share(layout, 0).tolist() == [0, 3, 4, 5, 6, 7, 8, 9]
    assert share(layout, 1).tolist() == [1, 2, 10, 11, 12, 13, 14, 15]
    assert [num_own_keys(layout, rank) for rank in (0, 1)] == [1, 2]
    assert own_segments(layout, 0) == [(slice(0, 5), slice(0, 0)), (slice(5, 6), slice(5, 5))]
    assert own_segments(layout, 1) == [(slice(6, 11), slice(5, 6))]


def test_two_pairs_share_a_micro_batch_by_hand() -> None:
    layout = pack_layout([pair_layout(3, 5, 6, 2), pair_layout(1, 1, 1, 2)], multiple=4)
    assert layout.parts == [slice(0, 8), slice(8, 11)]  # 4 + 12 tokens on two ranks, then 4 + 2
    assert (layout.tail, layout.length) == (1, 12)


@given(
    lengths=st.tuples(*[st.integers(1, 60)] * 3),
    num_shares=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_shares_cover_everything_once(lengths: tuple[int, int, int], num_shares: int) -> None:
    layout = pair_layout(*lengths, num_shares=num_shares)
    shares = [share(layout, rank) for rank in range(num_shares)]
    assert sorted(torch.cat(shares).tolist()) == list(range(layout.length))
    assert {len(own) for own in shares} == {layout.local_length}
    assert layout.padding < 3 * num_shares
    for rank, own in enumerate(shares):
        trunk = own[: layout.local_trunk]
        num_keys = num_own_keys(layout, rank)
        assert (trunk[:num_keys] < layout.trunk).all() and (trunk[num_keys:] >= layout.trunk).all()
        real = [place.item() for place in own[layout.local_trunk :] if place < layout.length - layout.branch_padding]
        segments = own_segments(layout, rank)
        assert [place + layout.padded_trunk for part, _ in segments for place in range(part.start, part.stop)] == real
        starts = {branch.start - layout.padded_trunk for branch in layout.branch_slices}
        assert all(before.stop == part.start and before.start in starts for part, before in segments)


@pytest.mark.parametrize("num_shares", [1, 2, 4])
def test_targets_of_all_shares_are_the_targets(num_shares: int) -> None:
    layout = pair_layout(3, 5, 5, num_shares=num_shares)
    tokens = input_tokens(layout, *(torch.tensor(part) for part in (TRUNK, CHOSEN, REJECTED)))
    whole = pair_targets(layout, tokens, torch.tensor(CHOSEN_SPANS), torch.tensor(REJECTED_SPANS), True)
    _, _, unpadded = example(True)
    assert whole.labels_N.tolist() == unpadded.labels_N.tolist()
    found = []
    for rank in range(num_shares):
        own = share(layout, rank)
        part = whole.of_share(own, layout.length)
        assert part.num_in_nll == whole.num_in_nll == 7
        rows = own[part.rows_N].tolist()
        found += zip(rows, part.labels_N.tolist(), part.segment_N.tolist(), part.in_nll_N.tolist(), strict=True)
    lists = (x.tolist() for x in (whole.rows_N, whole.labels_N, whole.segment_N, whole.in_nll_N))
    assert sorted(found) == list(zip(*lists, strict=True))
