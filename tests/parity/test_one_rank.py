"""The same comparison as test_step.py on a few layouts only: for a quick look, and what tests/mutations.py runs.

One rank with tied embeddings, two data-parallel ranks of uneven pairs, two context-parallel ranks, a reference in
memory, and objectives that read other trees, each with several micro-batches.
"""

import itertools
from typing import TypeGuard

import pytest

from tests.parity.cases import Case, random_pairs
from tests.parity.test_step import TOLERANCE, measure, worst

CASES = {
    "one-rank": Case(architecture="qwen2", tied=True, num_turns=2, seed=101),
    "two-data-parallel": Case(architecture="mistral", tied=False, dp=2, num_turns=3, nll_over_all=False, seed=102),
    "two-context-parallel": Case(architecture="llama", tied=False, cp=2, num_turns=2, seed=103),
    "online-reference": Case(architecture="qwen2", tied=False, pp=2, cp=2, num_turns=2, reference="online", seed=105),
    "keep-attention": Case(architecture="mistral", tied=True, cp=2, num_turns=2, recompute="keep-attention", seed=104),
    "solopo-dpo": Case(architecture="llama", tied=False, cp=2, num_turns=2, objective="solopo-dpo", seed=106),
    "solopo-simpo": Case(architecture="llama", tied=True, pairs_per_microbatch=2, objective="solopo-simpo", seed=107),
    "solopo-orpo": Case(architecture="qwen3", tied=False, dp=2, num_turns=2, objective="solopo-orpo", seed=108),
    "sft-constrained": Case(architecture="qwen2", tied=False, num_turns=2, objective="sft-constrained", seed=109),
    "sft-rejected": Case(architecture="mistral", tied=False, cp=2, objective="sft-rejected", seed=110),
    "padded-trunks": Case(
        architecture="mistral", tied=False, cp=2, pairs_per_microbatch=2, trunk_multiple=96, seed=111
    ),
    "packed": Case(architecture="llama", tied=False, cp=2, dp=2, num_turns=2, pairs_per_microbatch=2, seed=105),
}


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Those that were asked for, at once: ranks are started once for each number of them."""
    asked = [CASES[item.callspec.id.split("@")[0]] for item in request.session.items if _is_case(item)]
    return measure(asked, tmp_path_factory.mktemp("cases"))


def _is_case(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return isinstance(item, pytest.Function) and item.function is test_equals_oracle


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_oracle(case: Case, measured: dict[str, dict[str, float]]) -> None:
    found = measured[case.name]
    assert worst(found) <= TOLERANCE, found


def test_the_data_parallel_ranks_hold_pairs_of_different_lengths() -> None:
    """Else an average over ranks and one over pairs would be the same number."""
    pairs = random_pairs(CASES["two-data-parallel"])
    for name in ("trunk", "chosen", "rejected"):
        lengths = [len(pair["long"][name]) for pair in pairs]
        assert all(mine != others for mine, others in itertools.pairwise(lengths)), (name, lengths)
