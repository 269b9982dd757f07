"""The part of an objective beside the NLL, one function for each kind; objectives.py says which objective takes which.

Each takes what the policy and the reference gave for one pair, and the coefficients, and returns Terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_longpo.data.render import Context
from megatron_longpo.objective.preferences import (
    AnswerLogps,
    Coefficients,
    Policy,
    Reference,
    log_odds,
    margin_by_turn,
)


class Terms(NamedTuple):
    """What an objective adds to ``nll_coef * NLL`` of a pair."""

    weighted: Tensor
    """Scalar, coefficients applied."""
    reports: dict[str, Tensor]
    """Scalars: ``preference_loss``, ``margin``, ``accuracy`` (1 where the margin is above 0), ``constraint``."""
    margin_K: Tensor | None = None
    """The margin of each turn."""


TermsOf = Callable[[Policy, Reference, Coefficients], Terms]


def nothing(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
    """Add nothing: the NLL alone."""
    return Terms(torch.zeros((), dtype=torch.float64), {})


def against_reference(
    policy_context: Context, reference_context: Context, loss: Callable[[Tensor, Coefficients], Tensor]
) -> TermsOf:
    """Make a preference of the margin between policy and reference, each on its own context; margin in nats."""

    def terms(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
        margin_K = margin_by_turn(policy, reference, policy_context, reference_context)
        return _preference(loss(margin_K, c), margin_K.sum(), margin_K, c)

    return terms


def simpo(context: Context) -> TermsOf:
    """Make SimPO's preference (arXiv 2405.14734, equation 6): -log sigmoid(beta * margin - gamma).

    The margin is that of the mean log-probs of a response token, in nats per token; there is no reference.
    """

    def terms(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
        chosen, rejected = policy[context, "chosen"], policy[context, "rejected"]
        margin = chosen.mean() - rejected.mean()
        margin_K = chosen.logp_K / chosen.num_tokens_K - rejected.logp_K / rejected.num_tokens_K
        return _preference(-logsigmoid(c.beta * margin - c.gamma), margin, margin_K, c)

    return terms


def orpo(context: Context) -> TermsOf:
    """Make ORPO's preference (arXiv 2403.07691, equation 7): -log sigmoid of the difference of the log odds.

    That difference is the margin; its weight, the paper's lambda, is ``pref_coef``. There is no reference.
    """

    def terms(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
        chosen, rejected = policy[context, "chosen"], policy[context, "rejected"]
        turns = zip(*chosen, *rejected, strict=True)
        margin_K = torch.stack(
            [
                log_odds(AnswerLogps(logp, num)) - log_odds(AnswerLogps(other_logp, other_num))
                for logp, num, other_logp, other_num in turns
            ]
        )
        margin = log_odds(chosen) - log_odds(rejected)
        return _preference(-logsigmoid(margin), margin, margin_K, c)

    return terms


def solopo(preference: TermsOf, reward: Callable[[Policy, Reference, Context, Coefficients], Tensor]) -> TermsOf:
    """Make SoLoPO (arXiv 2505.11166): a preference on short contexts + alpha * |r(chosen|short) - r(chosen|long)|."""

    def terms(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
        on_short = preference(policy, reference, c)
        constraint = (reward(policy, reference, "short", c) - reward(policy, reference, "long", c)).abs()
        reports = on_short.reports | {"constraint": constraint}
        return Terms(on_short.weighted + c.alpha * constraint, reports, on_short.margin_K)

    return terms


def dpo_reward(long_reference: Context) -> Callable[[Policy, Reference, Context, Coefficients], Tensor]:
    """Make r = beta * log(policy / reference) of the chosen answers.

    Args:
        long_reference: what the reference reads where the policy reads the long context.
    """

    def reward(policy: Policy, reference: Reference, context: Context, c: Coefficients) -> Tensor:
        reads = long_reference if context == "long" else "short"
        return c.beta * (policy[context, "chosen"].logp_K - reference[reads, "chosen"]).sum()

    return reward


def simpo_reward(policy: Policy, reference: Reference, context: Context, c: Coefficients) -> Tensor:
    """r = beta / |y| * log policy of the chosen answers."""
    return c.beta * policy[context, "chosen"].mean()


def orpo_reward(policy: Policy, reference: Reference, context: Context, c: Coefficients) -> Tensor:
    """r = log odds of the chosen answers."""
    return log_odds(policy[context, "chosen"])


def short_to_long_constraint(policy: Policy, reference: Reference, c: Coefficients) -> Terms:
    """Add alpha * mean over the turns of gap^2 / (2 |y|).

    gap = log policy(chosen | long) - log reference(chosen | short), nats, and |y| are the turn's response tokens.

    It estimates the KL divergence of LongPO's short-to-long constraint (arXiv 2502.13922, section 3.2) from the chosen
    answers: half the squared log-ratio is zero where both agree and has the divergence's gradient near there. Divided
    by the response tokens, it does not grow with an answer's length.
    """
    chosen = policy["long", "chosen"]
    gap_K = chosen.logp_K - reference["short", "chosen"]
    constraint = (gap_K**2 / (2 * chosen.num_tokens_K)).mean()
    return Terms(c.alpha * constraint, {"constraint": constraint})


def _preference(loss: Tensor, margin: Tensor, margin_K: Tensor, c: Coefficients) -> Terms:
    reports = {"preference_loss": loss, "margin": margin, "accuracy": (margin > 0).double()}
    return Terms(c.pref_coef * loss, reports, margin_K)
