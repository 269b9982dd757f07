"""Index arithmetic of a pair, against lists written by hand."""

import pytest
import torch

from megatron_longpo.model.layout import (
    PairLayout,
    Targets,
    input_tokens,
    mean_nll,
    pair_layout,
    pair_targets,
    positions,
    sum_by_turn,
)

# Both branches open with 13. Chosen answers 20 21, is instructed 30, answers 22; rejected answers 40, then 41 42.
TRUNK, CHOSEN, REJECTED = [10, 11, 12], [13, 20, 21, 30, 22], [13, 40, 30, 41, 42]
CHOSEN_SPANS, REJECTED_SPANS = [[1, 3], [4, 5]], [[1, 2], [3, 5]]


def example(nll_over_all: bool) -> tuple[PairLayout, torch.Tensor, Targets]:
    layout = pair_layout(3, 5, 5, multiple=4)
    tokens = input_tokens(layout, *(torch.tensor(part) for part in (TRUNK, CHOSEN, REJECTED)))
    spans = torch.tensor(CHOSEN_SPANS), torch.tensor(REJECTED_SPANS)
    return layout, tokens, pair_targets(layout, tokens, *spans, nll_over_all)


def test_tokens_and_positions() -> None:
    layout, tokens, _ = example(True)
    assert tokens.tolist() == [10, 11, 12, 13, 20, 21, 30, 22, 13, 40, 30, 41, 42, 0, 0, 0]
    assert positions(layout).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 0, 1, 2]
    assert layout.length == 16 and layout.padding == 3


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
    logp = -torch.arange(1.0, 11.0)
    chosen, rejected = sum_by_turn(logp, targets)
    assert chosen.tolist() == [-9.0, -7.0] and rejected.tolist() == [-8.0, -19.0]
    assert mean_nll(logp, targets).item() == pytest.approx(28 / 7)


@pytest.mark.parametrize("lengths", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, -1)])
def test_empty_parts_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PairLayout(*lengths)
