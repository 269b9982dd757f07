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

from megatron_longpo.data.render import Context


def margin_by_turn(
    policy_chosen_K: Tensor, policy_rejected_K: Tensor, reference_chosen_K: Tensor, reference_rejected_K: Tensor
) -> Tensor:
    """[policy - reference] of chosen minus that of rejected, nats [K]; see reference_context."""
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


def _sigmoid(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)


PREFERENCES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "longpo": one_sigmoid,
    "longpo-per-turn": sigmoid_per_turn,
    "hinge": hinge,
    "ipo": ipo,
    "dpo": one_sigmoid,
}
"""Name of --longpo-objective -> (margin by turn, beta, label smoothing) -> the preference term of a pair, scalar."""

OBJECTIVES = (*PREFERENCES, "sft")
"""``sft`` is supervised fine-tuning on the chosen answers: the NLL alone."""

WITH_LABEL_SMOOTHING = ("longpo", "longpo-per-turn", "dpo")


def reference_context(objective: str) -> Context | None:
    """On which context the reference's log-probs are conditioned: the long one in plain DPO; None needs no reference.

    The paper compares LongPO with both exceptions (arXiv 2502.13922, section 4).
    """
    match objective:
        case "sft":
            return None
        case "dpo":
            return "long"
        case _:
            return "short"


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Which objective, with its coefficients; the defaults are the released run's."""

    name: str = "longpo"
    """One of OBJECTIVES."""
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
    reports: dict[str, Tensor]
    """What there is to say of the preference: ``preference_loss``, ``margin`` (nats, sum over the turns), ``accuracy``
    (1 where the margin is above 0). Empty without a reference."""


def pair_loss(margin_K: Tensor | None, nll: Tensor, objective: Objective) -> PairLoss:
    """The loss of one pair.

    Args:
        margin_K: nats; None for ``sft``, which has no reference and so no margin.
        nll: mean negative log-likelihood, nats per token.
    """
    if margin_K is None:
        return PairLoss(objective.nll_coef * nll, {})
    preference = PREFERENCES[objective.name](margin_K, objective.beta, objective.label_smoothing)
    margin = margin_K.sum()
    reports = {"preference_loss": preference, "margin": margin, "accuracy": (margin > 0).double()}
    return PairLoss(objective.nll_coef * nll + objective.pref_coef * preference, reports)
