"""Every objective against its published formula, written again with plain numbers; the records themselves."""

import math
import random
from dataclasses import fields

import pytest
import torch

from megatron_longpo.errors import UserError
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, Objective
from megatron_longpo.objective.preferences import AnswerLogps, Coefficients

KEYS = [(context, answer) for context in ("short", "long") for answer in ("chosen", "rejected")]
NLL = 2.5


class Numbers:
    """What policy and reference gave: by (context, answer) a list of a number a turn."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.num_turns = rng.randint(1, 5)
        self.policy, self.reference = ({key: self.draw(rng) for key in KEYS} for _ in range(2))
        self.tokens = {answer: [rng.randint(1, 30) for _ in range(self.num_turns)] for answer in ("chosen", "rejected")}

    def draw(self, rng: random.Random) -> list[float]:
        return [rng.uniform(-120.0, -5.0) for _ in range(self.num_turns)]

    def loss(self, name: str, **given: float) -> float:
        """The product's, of what the objective asks for and nothing more."""
        objective = OBJECTIVES[name]
        policy = {
            (kind.context, answer): AnswerLogps(
                torch.tensor(self.policy[kind.context, answer], dtype=torch.float64), torch.tensor(self.tokens[answer])
            )
            for kind in objective.reads
            for answer in kind.answers
        }
        reference = {
            (kind.context, answer): torch.tensor(self.reference[kind.context, answer], dtype=torch.float64)
            for kind in objective.reference
            for answer in kind.answers
        }
        nll = torch.tensor(NLL, dtype=torch.float64)
        return objective.loss(policy, reference, nll, objective.coefficients(given))[0].item()

    def margins(self, policy: str, reference: str) -> list[float]:
        gaps = {
            answer: [p - r for p, r in zip(self.policy[policy, answer], self.reference[reference, answer], strict=True)]
            for answer in ("chosen", "rejected")
        }
        return [chosen - rejected for chosen, rejected in zip(gaps["chosen"], gaps["rejected"], strict=True)]

    def mean(self, context: str, answer: str) -> float:
        return sum(self.policy[context, answer]) / sum(self.tokens[answer])

    def odds(self, context: str, answer: str) -> float:
        p = math.exp(self.mean(context, answer))
        return math.log(p / (1 - p))


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > -500 else -x


@pytest.mark.parametrize("seed", range(50))
def test_released_loss_from_its_formula(seed: int) -> None:
    """DPO's pi_logratios - ref_logratios over the sums of all turns, as the released trainer writes it."""
    numbers = Numbers(seed)
    policy = sum(numbers.policy["long", "chosen"]) - sum(numbers.policy["long", "rejected"])
    reference = sum(numbers.reference["short", "chosen"]) - sum(numbers.reference["short", "rejected"])
    expected = NLL + 0.01 * minus_log_sigmoid(0.01 * (policy - reference))
    assert numbers.loss("longpo") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_every_objective_from_its_formula(seed: int) -> None:
    numbers = Numbers(seed)
    beta, wrong, alpha, gamma = 0.05, 0.1, 1.7, 0.4

    def smoothed(margin: float) -> float:
        return (1 - wrong) * minus_log_sigmoid(beta * margin) + wrong * minus_log_sigmoid(-beta * margin)

    margins, short_margin = numbers.margins("long", "short"), sum(numbers.margins("short", "short"))
    simpo = {
        context: minus_log_sigmoid(beta * (numbers.mean(context, "chosen") - numbers.mean(context, "rejected")) - gamma)
        for context in ("short", "long")
    }
    orpo = {
        context: minus_log_sigmoid(numbers.odds(context, "chosen") - numbers.odds(context, "rejected"))
        for context in ("short", "long")
    }
    on_short = sum(numbers.policy["short", "chosen"]) - sum(numbers.reference["short", "chosen"])
    gaps = [p - r for p, r in zip(numbers.policy["long", "chosen"], numbers.reference["short", "chosen"], strict=True)]
    on_long = {
        read: sum(numbers.policy["long", "chosen"]) - sum(numbers.reference[read, "chosen"])
        for read in ("short", "long")
    }
    squared = [gap**2 / (2 * tokens) for gap, tokens in zip(gaps, numbers.tokens["chosen"], strict=True)]
    preference = {
        "longpo": smoothed(sum(margins)),
        "longpo-per-turn": sum(map(smoothed, margins)) / len(margins),
        "hinge": max(0.0, 1 - beta * sum(margins)),
        "ipo": (sum(margins) - 10.0) ** 2,
        "dpo": smoothed(sum(numbers.margins("long", "long"))),
        "simpo": simpo["long"],
        "orpo": orpo["long"],
        "solopo-dpo": smoothed(short_margin),
        "solopo-dpo-short-reference": smoothed(short_margin),
        "solopo-simpo": simpo["short"],
        "solopo-orpo": orpo["short"],
        "sft": 0.0,
        "sft-rejected": 0.0,
        "sft-constrained": 0.0,
    }
    constraint = {
        "solopo-dpo": beta * abs(on_short - on_long["long"]),
        "solopo-dpo-short-reference": beta * abs(on_short - on_long["short"]),
        "solopo-simpo": beta * abs(numbers.mean("short", "chosen") - numbers.mean("long", "chosen")),
        "solopo-orpo": abs(numbers.odds("short", "chosen") - numbers.odds("long", "chosen")),
        "sft-constrained": sum(squared) / len(squared),
    }
    assert preference.keys() == OBJECTIVES.keys()
    values = {"beta": beta, "label_smoothing": wrong, "alpha": alpha, "gamma": gamma, "pref_coef": 0.3, "nll_coef": 0.7}
    for name, objective in OBJECTIVES.items():
        given = {coefficient: values[coefficient] for coefficient in objective.defaults}
        expected = 0.7 * NLL + 0.3 * preference[name] + alpha * constraint.get(name, 0.0)
        assert numbers.loss(name, **given) == pytest.approx(expected, rel=1e-9), name


def test_certain_answers_have_finite_odds() -> None:
    """p = 1 has none: the loss and its gradient stay finite."""
    logp_K = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    certain = AnswerLogps(logp_K, torch.tensor([4]))
    policy = {("long", answer): certain for answer in ("chosen", "rejected")}
    objective = OBJECTIVES["orpo"]
    loss, _ = objective.loss(policy, {}, torch.tensor(0.0), objective.coefficients({}))
    loss.backward()
    assert loss.isfinite() and logp_K.grad.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_records(objective: Objective) -> None:
    assert objective.reads[0].context == "long"  # step_metrics.py counts its trunk as the pair's length
    assert any(kind.context == objective.nll_context for kind in objective.reads)
    assert objective.defaults.keys() <= OPTIONS.keys() == {field.name for field in fields(Coefficients)}
    assert all(OPTIONS[name].allows(value) for name, value in objective.defaults.items())
    assert objective.description[-1] != "." and objective.tags


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sft", {"beta": 0.1}, "^--longpo-objective sft has no --longpo-beta; remove it, or choose longpo, .*dpo"),
        ("longpo", {"beta": 0.0}, "^--longpo-beta 0 must be above 0$"),
        ("longpo", {"beta": math.nan}, "^--longpo-beta nan must be above 0$"),
        ("longpo", {"pref_coef": math.inf}, "^--longpo-pref-coef inf must be at least 0"),
        ("longpo", {"label_smoothing": 0.5}, "^--longpo-label-smoothing 0.5 must be at least 0 and below 0.5$"),
        ("longpo", {"nll_coef": 0.0, "pref_coef": 0.0}, "nothing to train"),
        ("solopo-orpo", {"nll_coef": 0.0, "pref_coef": 0.0, "alpha": 0.0}, "nothing to train"),
    ],
)
def test_coefficients_that_are_refused(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OBJECTIVES[name].coefficients(given)


def test_coefficients_that_are_not_given() -> None:
    assert OBJECTIVES["longpo"].coefficients({"beta": None}) == Coefficients(beta=0.01, pref_coef=0.01, nll_coef=1.0)
