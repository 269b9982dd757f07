"""The numbers of a step that are reported: of all pairs, and by turn and by length of the context.

Each is a sum and the number of terms in it, so that Megatron's reduction over micro-batches and ranks ends in a mean
(objective/scaling.py). All ranks report the same names whatever pairs they hold: a turn or a length that none of the
step's pairs has ends as 0 / 0, and `take_breakdowns` leaves it out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.model.layout import TreeLayout
from megatron_longpo.objective.preferences import Policy, Reference
from megatron_longpo.objective.terms import Terms

TOKEN_KINDS = ("trunk", "branches", "padding")
"""Kinds of tokens whose mean per pair is reported."""

BREAKDOWNS = ("by_turn", "by_length")

Breakdowns = dict[str, dict[str, dict[str, float]]]
"""by_turn or by_length -> turn (from 1) or upper bound of the length (tokens) -> name -> mean."""


@dataclass(frozen=True, slots=True)
class PairReport:
    """What a step computed for one pair."""

    loss: Tensor
    nll: Tensor
    """Nats per token."""
    terms: Terms
    policy: Policy
    reference: Reference
    layouts: Sequence[TreeLayout]
    """The pair's trees, the long one first."""

    def logp_K(self) -> dict[str, Tensor]:
        """Log-probs of each turn by name: ``policy_chosen_logp`` and so on, nats.

        An answer that is read on both contexts has one more name, ``policy_long_chosen_logp``; the plain one is short.
        """
        found: dict[str, Tensor] = {}
        policy_K = {key: logps.logp_K for key, logps in self.policy.items()}
        for who, of in (("policy", policy_K), ("reference", dict(self.reference))):
            for (context, answer), logp_K in of.items():
                on_long = "long_" if context == "long" and ("short", answer) in of else ""
                found[f"{who}_{on_long}{answer}_logp"] = logp_K
        return found


def reports(pairs: Sequence[PairReport], tail: int, max_turns: int, length_buckets: Sequence[int]) -> dict[str, Tensor]:
    """The numbers of each pair of a micro-batch, by name: [P, 2] float64, sum and number of terms.

    Args:
        tail: padding at the end of every rank's tokens (PackLayout); it is reported with the first pair.
    """
    rows: list[dict[str, Tensor]] = []
    for pair in pairs:
        its = pair.layouts
        padding = sum(tree.padding for tree in its) + (0 if rows else tail * its[0].cp_size)
        tokens = {
            "trunk": sum(tree.trunk for tree in its),
            "branches": sum(sum(tree.branches) for tree in its),
            "padding": padding,
        }
        row = _of_pair(pair) | {name_of_tokens(kind): pair.nll.new_tensor(tokens[kind]) for kind in TOKEN_KINDS}
        row = {name: _term(value) for name, value in row.items()}
        bucket = next(bound for bound in length_buckets if its[0].trunk <= bound)
        rows.append(row | _by_turn(pair, max_turns) | _by_length(pair, bucket, length_buckets))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def name_of_tokens(kind: str) -> str:
    """The name under which a kind's tokens per pair are reported."""
    return f"{kind}_tokens_per_pair"


def length_buckets(num_tokens: Sequence[int]) -> tuple[int, ...]:
    """Upper bounds for contexts of these lengths (tokens): the powers of two that at least one of them needs."""
    return tuple(sorted({1 << (length - 1).bit_length() for length in num_tokens}))


def take_breakdowns(reported: dict[str, Any]) -> Breakdowns:
    """Take what is reported by turn and by length out of Megatron's means."""
    found: Breakdowns = {kind: {} for kind in BREAKDOWNS}
    for name in [name for name in reported if name.split("/")[0] in BREAKDOWNS]:
        kind, part, metric = name.split("/")
        if not math.isnan(value := float(reported.pop(name))):
            found[kind].setdefault(part, {})[metric] = value
    return found


def _of_pair(pair: PairReport) -> dict[str, Tensor]:
    return {
        "loss": pair.loss,
        "nll": pair.nll,
        **pair.terms.reports,
        **{name: logp_K.sum() for name, logp_K in pair.logp_K().items()},
    }


def _by_turn(pair: PairReport, max_turns: int) -> dict[str, Tensor]:
    margin_K = pair.terms.margin_K
    values_K = {} if margin_K is None else {"margin": margin_K, "accuracy": (margin_K > 0).double()}
    return {
        f"by_turn/{turn + 1}/{name}": _term(value_K[turn]) if turn < len(value_K) else value_K.new_zeros(2)
        for name, value_K in (values_K | _gaps(pair)).items()
        for turn in range(max_turns)
    }


def _by_length(pair: PairReport, bucket: int, buckets: Sequence[int]) -> dict[str, Tensor]:
    whole = _of_pair(pair)
    values = {name: whole[name] for name in ("margin", "accuracy", "nll") if name in whole}
    values |= {name: gap_K.sum() for name, gap_K in _gaps(pair).items()}
    return {
        f"by_length/{bound}/{name}": _term(value) if bound == bucket else value.new_zeros(2)
        for name, value in values.items()
        for bound in buckets
    }


def _gaps(pair: PairReport) -> dict[str, Tensor]:
    """Policy minus reference, by turn: what the preference pushes up or down."""
    logp_K = pair.logp_K()
    return {
        f"{answer}_gap": logp_K[f"policy_{answer}_logp"] - logp_K[f"reference_{answer}_logp"]
        for answer in ("chosen", "rejected")
        if f"policy_{answer}_logp" in logp_K and f"reference_{answer}_logp" in logp_K
    }


def _term(value: Tensor) -> Tensor:
    return torch.stack((value.detach().double(), value.new_ones((), dtype=torch.float64)))
