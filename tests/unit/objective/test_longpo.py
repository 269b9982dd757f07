"""Every objective against its published formula, written again with plain numbers."""

import math
import random

import pytest
import torch

from megatron_longpo.objective.longpo import (
    OBJECTIVES,
    PREFERENCES,
    Objective,
    margin_by_turn,
    pair_loss,
    reference_context,
)


def turns(seed: int) -> list[tuple[float, float, float, float]]:
    """1-5 turns of (policy chosen, policy rejected, reference chosen, reference rejected), nats."""
    rng = random.Random(seed)
    return [tuple(rng.uniform(-120.0, -5.0) for _ in range(4)) for _ in range(rng.randint(1, 5))]  # type: ignore[misc]


def loss_of(seed: int, objective: Objective, nll: float = 2.5) -> float:
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*turns(seed), strict=True))
    return pair_loss(margin_by_turn(*columns), torch.tensor(nll, dtype=torch.float64), objective).loss.item()


@pytest.mark.parametrize("seed", range(50))
def test_released_loss_from_its_formula(seed: int) -> None:
    """DPO's pi_logratios - ref_logratios over the sums of all turns, as the released trainer writes it."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = (
        sum(column) for column in zip(*turns(seed), strict=True)
    )
    logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    dpo = math.log1p(math.exp(-0.01 * logits))
    assert loss_of(seed, Objective()) == pytest.approx(2.5 + 0.01 * dpo, rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_variants_from_their_formulas(seed: int) -> None:
    margins = [(pc - rc) - (pr - rr) for pc, pr, rc, rr in turns(seed)]
    beta, smoothing = 0.05, 0.1

    def sigmoid(margin: float, order: float = 1.0) -> float:
        return math.log1p(math.exp(-order * beta * margin))

    def smoothed(margin: float) -> float:
        return (1 - smoothing) * sigmoid(margin) + smoothing * sigmoid(margin, -1.0)

    expected = {
        "longpo": smoothed(sum(margins)),
        "longpo-per-turn": sum(map(smoothed, margins)) / len(margins),
        "hinge": max(0.0, 1 - beta * sum(margins)),
        "ipo": (sum(margins) - 10.0) ** 2,
        "dpo": smoothed(sum(margins)),
    }
    assert expected.keys() == PREFERENCES.keys()
    for name, preference in expected.items():
        objective = Objective(name=name, beta=beta, label_smoothing=smoothing, pref_coef=0.3, nll_coef=0.7)
        assert loss_of(seed, objective) == pytest.approx(0.7 * 2.5 + 0.3 * preference, rel=1e-12), name


def test_sft_is_the_nll_alone() -> None:
    loss, reports = pair_loss(None, torch.tensor(2.5), Objective(name="sft", nll_coef=0.7))
    assert loss.item() == pytest.approx(0.7 * 2.5) and reports == {}


def test_what_each_reference_reads() -> None:
    assert {name: reference_context(name) for name in OBJECTIVES} == {
        **dict.fromkeys(("longpo", "longpo-per-turn", "hinge", "ipo"), "short"),
        "dpo": "long",
        "sft": None,
    }
