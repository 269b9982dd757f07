"""The LongPO objective: tensors in, tensors out (arXiv 2502.13922, section 3; released form).

Letters in shapes: P = pairs. All log-probabilities are sums over the response tokens of all turns, in nats.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PairLosses(NamedTuple):
    """Per pair, so that the caller alone decides how pairs are averaged (scaling.py)."""

    loss_P: Tensor
    """nll_coef * NLL + pref_coef * preference."""
    preference_P: Tensor
    """-logsigmoid(beta * margin)."""
    margin_P: Tensor
    """nats."""


def margin(
    policy_chosen_P: Tensor, policy_rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor
) -> Tensor:
    """[policy - reference] of chosen minus that of rejected, nats [P]: policy on long context, reference on short."""
    return (policy_chosen_P - reference_chosen_P) - (policy_rejected_P - reference_rejected_P)


def longpo_loss(
    policy_chosen_P: Tensor,
    policy_rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    nll_P: Tensor,
    *,
    beta: float,
    pref_coef: float,
    nll_coef: float,
) -> PairLosses:
    """The released objective.

    Args:
        nll_P: a pair's mean negative log-likelihood, nats per token.
        beta: inverse temperature of the margin.
        pref_coef: weight of the preference term ("dpo_lambda" in the released code).
        nll_coef: weight of the NLL term.
    """
    margin_P = margin(policy_chosen_P, policy_rejected_P, reference_chosen_P, reference_rejected_P)
    preference_P = -torch.nn.functional.logsigmoid(beta * margin_P)
    return PairLosses(nll_coef * nll_P + pref_coef * preference_P, preference_P, margin_P)
