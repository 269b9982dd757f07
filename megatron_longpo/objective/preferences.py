"""What objectives are made of: margins and rewards of a pair, and the losses on them. Tensors in, tensors out.

Letters in shapes: K = turns of a pair. Log-probabilities are sums over the response tokens of a turn, in nats, float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_longpo.data.render import Context
from megatron_longpo.data.trees import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """What the user can set; a coefficient that an objective does not have is 0 and is not read."""

    beta: float = 0.0
    """Inverse temperature of the margin."""
    pref_coef: float = 0.0
    """Weight of the preference term ("dpo_lambda" in the released code)."""
    nll_coef: float = 0.0
    """Weight of the NLL term."""
    label_smoothing: float = 0.0
    """Probability that the preferred answer is the wrong one."""
    gamma: float = 0.0
    """Target margin of SimPO."""
    alpha: float = 0.0
    """Weight of the term that ties the long context to the short one."""


class AnswerLogps(NamedTuple):
    """An answer's log-probs on one context."""

    logp_K: Tensor
    num_tokens_K: Tensor
    """Response tokens, int64."""

    def mean(self) -> Tensor:
        """Nats per response token over all turns, scalar."""
        return self.logp_K.sum() / self.num_tokens_K.sum()


Policy = Mapping[tuple[Context, Answer], AnswerLogps]
"""What the policy gave, by (context, answer)."""
Reference = Mapping[tuple[Context, Answer], Tensor]
"""What the reference gave, [K], by (context, answer)."""


def margin_by_turn(policy: Policy, reference: Reference, policy_context: Context, reference_context: Context) -> Tensor:
    """[policy - reference] of chosen minus that of rejected, nats [K]."""
    gap_K = {
        answer: policy[policy_context, answer].logp_K - reference[reference_context, answer]
        for answer in ("chosen", "rejected")
    }
    return gap_K["chosen"] - gap_K["rejected"]


def one_sigmoid(margin_K: Tensor, c: Coefficients) -> Tensor:
    """-log sigmoid(beta * margin), the released form: the turns' margins add up inside one sigmoid.

    With label smoothing the order of the two answers is taken to be wrong with that probability (cDPO).
    """
    return _sigmoid(margin_K.sum(), c)


def sigmoid_per_turn(margin_K: Tensor, c: Coefficients) -> Tensor:
    """A preference for every turn: the mean of their losses."""
    return _sigmoid(margin_K, c).mean()


def hinge(margin_K: Tensor, c: Coefficients) -> Tensor:
    """max(0, 1 - beta * margin): SLiC-HF (arXiv 2305.10425) on the margin."""
    return torch.relu(1 - c.beta * margin_K.sum())


def ipo(margin_K: Tensor, c: Coefficients) -> Tensor:
    """(margin - 1 / (2 beta))^2: IPO (arXiv 2310.12036, equation 17), with beta for its tau."""
    return (margin_K.sum() - 1 / (2 * c.beta)) ** 2


def log_odds(logps: AnswerLogps) -> Tensor:
    """log(p / (1 - p)) with p = exp(mean log-prob of a response token): ORPO (arXiv 2403.07691, equation 4), scalar."""
    mean = logps.mean().clamp(max=-1e-12)  # p = 1 has no odds
    return mean - torch.log(-torch.expm1(mean))


def _sigmoid(margin: Tensor, c: Coefficients) -> Tensor:
    right, wrong = logsigmoid(c.beta * margin), logsigmoid(-c.beta * margin)
    return -(1 - c.label_smoothing) * right - c.label_smoothing * wrong
