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

from megatron_longpo.model.layout import PackLayout
from megatron_longpo.objective.longpo import PairLoss

TOKEN_KINDS = ("trunk", "branches", "padding")
"""Of these the mean per pair is reported."""

BREAKDOWNS = ("by_turn", "by_length")

Breakdowns = dict[str, dict[str, dict[str, float]]]
"""by_turn or by_length -> turn (from 1) or upper bound of the length (tokens) -> name -> mean."""


@dataclass(frozen=True, slots=True)
class PairReport:
    """What a step computed for one pair; K = its turns, log-probs in nats."""

    result: PairLoss
    nll: Tensor
    """Nats per token."""
    margin_K: Tensor | None
    """None without a reference."""
    logp_K: dict[str, Tensor]
    """policy_chosen_logp and policy_rejected_logp, and the same of the reference if there is one, by turn."""


def reports(
    pairs: Sequence[PairReport], layout: PackLayout, max_turns: int, length_buckets: Sequence[int]
) -> dict[str, Tensor]:
    """The numbers of each pair of a micro-batch, by name: [P, 2] float64, sum and number of terms."""
    rows = []
    for pair, its in zip(pairs, layout.pairs, strict=True):
        tail = layout.tail * its.num_shares if not rows else 0  # the micro-batch's, reported with its first pair
        tokens = {"trunk": its.trunk, "branches": its.chosen + its.rejected, "padding": its.padding + tail}
        row = _of_pair(pair) | {name_of_tokens(kind): pair.nll.new_tensor(tokens[kind]) for kind in TOKEN_KINDS}
        row = {name: _term(value) for name, value in row.items()}
        bucket = next(bound for bound in length_buckets if its.trunk <= bound)
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
        "loss": pair.result.loss,
        "nll": pair.nll,
        **pair.result.reports,
        **{name: logp_K.sum() for name, logp_K in pair.logp_K.items()},
    }


def _by_turn(pair: PairReport, max_turns: int) -> dict[str, Tensor]:
    if pair.margin_K is None:
        return {}
    values_K = {"margin": pair.margin_K, "accuracy": (pair.margin_K > 0).double(), **_gaps(pair)}
    return {
        f"by_turn/{turn + 1}/{name}": _term(value_K[turn]) if turn < len(value_K) else value_K.new_zeros(2)
        for name, value_K in values_K.items()
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
    """Policy on the long context minus reference, by turn: what the preference pushes up or down."""
    logp_K = pair.logp_K
    if pair.margin_K is None:
        return {}
    return {
        f"{side}_gap": logp_K[f"policy_{side}_logp"] - logp_K[f"reference_{side}_logp"]
        for side in ("chosen", "rejected")
    }


def _term(value: Tensor) -> Tensor:
    return torch.stack((value.detach().double(), value.new_ones((), dtype=torch.float64)))
