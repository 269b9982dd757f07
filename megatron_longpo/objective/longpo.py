"""The objectives: tensors in, tensors out. LongPO is arXiv 2502.13922, section 3, in its released form.

    loss = nll_coef * NLL + pref_coef * preference(margin)

Letters in shapes: K = turns of a pair. Log-probabilities are sums over the response tokens of a turn, in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def margin_by_turn(
    policy_chosen_K: Tensor, policy_rejected_K: Tensor, reference_chosen_K: Tensor, reference_rejected_K: Tensor
) -> Tensor:
    """[policy - reference] of chosen minus that of rejected, nats [K]: policy on long context, reference on short."""
    return (policy_chosen_K - reference_chosen_K) - (policy_rejected_K - reference_rejected_K)


def one_sigmoid(margin_K: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The released form: the turns' margins add up inside one sigmoid.

    With ``label_smoothing`` the order of the two answers is taken to be wrong with that probability (cDPO).
    """
    return _sigmoid(margin_K.sum(), beta, label_smoothing)


def sigmoid_per_turn(margin_K: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """A preference for every turn: the mean of their losses."""
    return _sigmoid(margin_K, beta, label_smoothing).mean()


def hinge(margin_K: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """max(0, 1 - beta * margin): SLiC-HF (arXiv 2305.10425) on the margin."""
    return torch.relu(1 - beta * margin_K.sum())


def ipo(margin_K: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """(margin - 1 / (2 beta))^2: IPO (arXiv 2310.12036, equation 17), with beta for its tau."""
    return (margin_K.sum() - 1 / (2 * beta)) ** 2


def no_preference(margin_K: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Supervised fine-tuning on the chosen answers: only the NLL is left."""
    return torch.zeros_like(margin_K.sum())


def _sigmoid(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)


PREFERENCES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "longpo": one_sigmoid,
    "longpo-per-turn": sigmoid_per_turn,
    "hinge": hinge,
    "ipo": ipo,
    "sft": no_preference,
}
"""Name of --longpo-objective -> (margin by turn, beta, label smoothing) -> the preference term of a pair, scalar."""

WITH_LABEL_SMOOTHING = ("longpo", "longpo-per-turn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Which objective, with its coefficients; the defaults are the released run's."""

    name: str = "longpo"
    """A key of PREFERENCES."""
    beta: float = 0.01
    """Inverse temperature of the margin."""
    pref_coef: float = 0.01
    """Weight of the preference term ("dpo_lambda" in the released code)."""
    nll_coef: float = 1.0
    """Weight of the NLL term."""
    label_smoothing: float = 0.0
    """Probability that the preferred answer is the wrong one."""


class PairLoss(NamedTuple):
    """Of one pair, so that the caller alone decides how pairs are averaged (scaling.py)."""

    loss: Tensor
    """nll_coef * NLL + pref_coef * preference."""
    preference: Tensor
    margin: Tensor
    """Sum over the turns, nats."""


def pair_loss(margin_K: Tensor, nll: Tensor, objective: Objective) -> PairLoss:
    """The loss of one pair from its margins (nats) and its mean negative log-likelihood (nats per token)."""
    preference = PREFERENCES[objective.name](margin_K, objective.beta, objective.label_smoothing)
    return PairLoss(objective.nll_coef * nll + objective.pref_coef * preference, preference, margin_K.sum())
