"""data/packing.py: every pair once, within the limit, work dealt out evenly, resumable."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.packing import BatchPlan, group_pairs
from megatron_longpo.errors import UserError


def test_by_hand() -> None:
    """Work 9, 5, 4, 3, 2, 1 in four groups of at most 9: 9, 5, 4 + 1, 3 + 2; then 9 and 3 + 2 on one rank."""
    work = np.array([4.0, 9.0, 1.0, 5.0, 2.0, 3.0])
    tokens = np.array([4, 9, 1, 5, 2, 3])
    assert group_pairs(tokens, work, 2, 2, max_tokens=9) == [[[1], [5, 4]], [[3], [0, 2]]]
    assert group_pairs(tokens, work, 2, 2, max_tokens=None) is None
    assert group_pairs(tokens, work, 2, 3, max_tokens=None) == [[[1], [5], [2]], [[3], [0], [4]]]


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=8, max_size=8),
    num_ranks=st.sampled_from([1, 2, 4, 8]),
    max_tokens=st.integers(1000, 4000),
)
def test_every_pair_once_and_within_the_limit(sizes: list[int], num_ranks: int, max_tokens: int) -> None:
    tokens = np.array(sizes)
    plan = make_plan(tokens, num_ranks, max_tokens, num_pairs_a_step=8)
    num_microbatches = plan.num_microbatches(1)
    assert 8 // num_ranks % num_microbatches == 0
    groups = [list(islice(plan.microbatches(0, num_microbatches, rank), num_microbatches)) for rank in range(num_ranks)]
    assert sorted(sample for rank in groups for group in rank for sample in group) == list(range(8))
    assert all(
        0 < sum(tokens[plan.pair_of_sample(s)] for s in group) <= max_tokens for rank in groups for group in rank
    )
    if num_microbatches > 1:
        assert tokens.sum() > num_ranks * max_tokens * (num_microbatches // 2) / 2, "far fewer would have done"


def make_plan(tokens: np.ndarray, num_ranks: int, max_tokens: int | None, num_pairs_a_step: int) -> BatchPlan:
    return BatchPlan(
        pair_of_sample=PairOrder(range(len(tokens)), seed=1),
        tokens=tokens,
        work=tokens.astype(float) ** 2,
        global_batch_size=num_pairs_a_step,
        num_ranks=num_ranks,
        max_tokens=max_tokens,
    )


def test_ranks_do_equal_work() -> None:
    """Lengths over an order of magnitude, work quadratic: the busiest rank has 1% more than the mean, where dealing
    in the order of the samples gives it 30% more."""
    tokens = np.random.RandomState(0).lognormal(mean=9, sigma=0.7, size=512).astype(int)
    plan = make_plan(tokens, num_ranks=4, max_tokens=None, num_pairs_a_step=64)
    assert plan.num_microbatches(8) == 16
    assert plan.imbalance(16, 8) < 1.01
    work = np.array([plan.work[plan.pair_of_sample(sample)] for sample in range(512)]).reshape(8, 16, 4).sum(1)
    assert work.max(1).sum() / work.mean(1).sum() > 1.3


def test_a_resumed_run_sees_the_rest_whatever_the_number_of_ranks() -> None:
    tokens = np.arange(1, 25)

    def steps(num_ranks: int, max_tokens: int | None, first: int) -> list[list[int]]:
        plan = make_plan(tokens, num_ranks, max_tokens, num_pairs_a_step=4)
        number = plan.num_microbatches(6)
        ranks = [plan.microbatches(first, number, rank) for rank in range(num_ranks)]
        return [sorted(s for rank in ranks for group in islice(rank, number) for s in group) for _ in range(6)]

    straight = steps(1, None, 0)
    assert straight == [list(range(first, first + 4)) for first in range(0, 24, 4)]
    assert steps(2, 50, 8)[:4] == straight[2:]


def test_a_pair_beyond_the_limit_is_refused() -> None:
    with pytest.raises(UserError, match="--longpo-tokens-per-microbatch 8 is below the longest pair, 9 tokens"):
        make_plan(np.array([3, 9]), 1, 8, 2).num_microbatches(1)


def test_another_batch_size_that_does_not_fit_is_refused() -> None:
    plan = make_plan(np.array([6, 2, 2, 6]), 1, 8, 2)
    shifted = (
        n for n in range(4) if len({plan.pair_of_sample(n) in (0, 3), plan.pair_of_sample(n + 1) in (0, 3)}) == 1
    )
    first = next(n for n in shifted if plan.pair_of_sample(n) in (0, 3))
    with pytest.raises(UserError, match="resumed with another --global-batch-size"):
        next(plan.microbatches(first, 1, 0))
