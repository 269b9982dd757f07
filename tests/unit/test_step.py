"""step.py: what a micro-batch computes for each of its pairs."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_longpo.micro_batch import micro_batch
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import forward_pack
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.objective.objectives import OBJECTIVES
from megatron_longpo.step import pair_reports
from megatron_longpo.step_metrics import reports, take_breakdowns
from megatron_longpo.step_settings import StepSettings
from tests.parity.cases import Case, random_pairs
from tests.ranks import run_ranks
from tests.unit.model.test_keep_attention import OPTIONS

NUM_PAIRS, MAX_TURNS, BUCKETS = 3, 3, (16, 64)


def settings(objective: str) -> StepSettings:
    return StepSettings(
        vocab_size=50,
        sequence_multiple=1,
        objective=OBJECTIVES[objective],
        coefficients=OBJECTIVES[objective].coefficients({}),
        nll_tokens="all",
        max_turns=MAX_TURNS,
        length_buckets=BUCKETS,
    )


def samples() -> list[dict[str, Any]]:
    """Pairs of one, two and three turns, with ids of OPTIONS' vocabulary."""
    cases = [Case(architecture="llama", tied=False, num_turns=turns, num_pairs=1, seed=turns) for turns in (1, 2, 3)]
    pairs = [random_pairs(case)[0] for case in cases]
    for conversation in (one for pair in pairs for one in (pair["long"], *pair["short"])):
        for name in ("trunk", "chosen", "rejected"):
            conversation[name] %= 50
    return pairs


def metrics_of_permutations(objective: str) -> list[dict[str, torch.Tensor]]:
    """reports() of the same pairs in every order, the rows put back into the first order."""
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    config = transformer_config(OPTIONS, tensor=1, pipeline=1, sequence=False, dtype=torch.float32)
    torch.manual_seed(0)
    model = build_model(config, ModelShape.of(OPTIONS, RopeParameters(rope_theta=1e4), multiple=1))
    groups = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_context_parallel_group()
    found = []
    for order in itertools.permutations(range(NUM_PAIRS)):
        own = [samples()[index] for index in order]
        batch = micro_batch(own, settings=settings(objective), cp_rank=0, cp_size=1)
        logp_N = forward_pack(model, batch.packed, 50, groups[0])
        pairs = pair_reports(logp_N, batch, groups[1], settings(objective))
        names, rows_PX2 = reports(pairs, batch.packed.layout.tail, MAX_TURNS, BUCKETS)
        found.append(dict(zip(names, rows_PX2[list(np.argsort(order))].unbind(1), strict=True)))
    return found


@pytest.mark.parametrize("objective", ["longpo", "solopo-dpo", "sft-constrained"])
def test_permuting_the_pairs_permutes_their_metrics(objective: str) -> None:
    """Bit for bit, all of them packed into one micro-batch."""
    first, *others = run_ranks(metrics_of_permutations, 1, objective)[0]
    assert len(others) == 5
    for other in others:
        assert other.keys() == first.keys()
        for name, rows_P2 in other.items():
            assert torch.equal(rows_P2, first[name]), name
    if objective != "longpo":
        return
    breakdown = {name: (rows_P2.sum(0)[0] / rows_P2.sum(0)[1]).item() for name, rows_P2 in first.items()}
    check_breakdown(first, take_breakdowns(dict[str, Any](breakdown)))


def check_breakdown(rows: dict[str, torch.Tensor], found: Any) -> None:
    """Means over the pairs that have the turn, and over those of the length, add up to the whole."""
    assert set(found["by_turn"]) == {"1", "2", "3"}
    margin = rows["margin"][:, 0]
    assert found["by_turn"]["3"]["margin"] == rows["by_turn/3/margin"][2, 0].item()
    total = sum(found["by_turn"][turn]["margin"] * count for turn, count in (("1", 3), ("2", 2), ("3", 1)))
    torch.testing.assert_close(torch.tensor(total).double(), margin.sum())
    gap = found["by_turn"]["1"]["chosen_gap"] - found["by_turn"]["1"]["rejected_gap"]
    torch.testing.assert_close(gap, found["by_turn"]["1"]["margin"])
    trunks = rows["trunk_tokens_per_pair"][:, 0]
    for bound, low in zip(BUCKETS, (0, 16), strict=True):
        inside = (trunks > low) & (trunks <= bound)
        if inside.any():
            torch.testing.assert_close(found["by_length"][str(bound)]["margin"], margin[inside].mean().item())
        else:
            assert str(bound) not in found["by_length"]
