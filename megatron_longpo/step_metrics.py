"""The numbers of a step that are reported: of all pairs, and by turn and by length of the context.

Each is a sum and the number of terms in it, so that Megatron's reduction over micro-batches and ranks ends in a mean
(objective/scaling.py). All ranks report the same names whatever pairs they hold: a turn or a length that none of the
step's pairs has ends as 0 / 0, and `take_breakdowns` leaves it out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_longpo.model.layout import TreeLayout
from megatron_longpo.objective.preferences import Policy, Reference
from megatron_longpo.objective.terms import Terms
from megatron_longpo.platform import pinned

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


def reports(
    pairs: Sequence[PairReport], tail: int, max_turns: int, length_buckets: Sequence[int]
) -> tuple[list[str], Tensor]:
    """The numbers of each pair of a micro-batch: X names, and float64 [P, X, 2]: a sum and its number of terms.

    Where a number stands among those computed is known from lengths alone. So the device picks all of them at once, and
    the host says where: a few operations, however many names there are.

    Args:
        tail: padding at the end of every rank's tokens (PackLayout); it is reported with the first pair.
    """
    computed: list[Tensor] = []
    rows: list[dict[str, _Number]] = []
    for pair in pairs:
        first = sum(len(values) for values in computed)
        whole, of_turns = _of_pair(pair), _of_turns(pair)
        values = _values(whole, of_turns)
        starts = dict(zip(values, accumulate(map(len, values.values()), initial=first), strict=False))
        computed += values.values()
        bucket = next(bound for bound in length_buckets if pair.layouts[0].trunk <= bound)
        rows.append(
            {name: _Number(starts[name]) for name in whole}
            | _tokens(pair, 0 if rows else tail)
            | _by_turn(of_turns, starts, max_turns)
            | _by_length(starts, bucket, length_buckets)
        )
    computed_V = torch.cat(computed)
    told_PX3 = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
    place_PX, known_PX, count_PX = pinned(told_PX3).to(computed_V.device, non_blocking=True).unbind(-1)
    sum_PX = torch.where(place_PX >= 0, computed_V[place_PX.long().clamp(min=0)], known_PX)
    return list(rows[0]), torch.stack((sum_PX, count_PX), dim=-1)


class _Number(NamedTuple):
    """A reported number of a pair, as the host knows it."""

    place: int = -1
    """Where it stands among what is computed; -1 if it is not computed."""
    known: float = 0.0
    """Its sum, if it is not computed."""
    count: float = 1.0
    """How many terms are in it."""


NOTHING = _Number(count=0.0)


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


def _values(whole: Mapping[str, Tensor], of_turns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that is computed of a pair, float64 [1], or [K] for each turn."""
    values = {**whole, **{f"by_turn/{name}": value_K for name, value_K in of_turns.items()}}
    return {name: value.detach().double().reshape(-1) for name, value in values.items()}


def _of_pair(pair: PairReport) -> dict[str, Tensor]:
    return {
        "loss": pair.loss,
        "nll": pair.nll,
        **pair.terms.reports,
        **{name: logp_K.sum() for name, logp_K in (pair.logp_K() | _gaps(pair)).items()},
    }


def _of_turns(pair: PairReport) -> dict[str, Tensor]:
    """By turn, [K]."""
    margin_K = pair.terms.margin_K
    return ({} if margin_K is None else {"margin": margin_K, "accuracy": margin_K > 0}) | _gaps(pair)


def _tokens(pair: PairReport, tail: int) -> dict[str, _Number]:
    trees = pair.layouts
    tokens = {
        "trunk": sum(tree.trunk for tree in trees),
        "branches": sum(sum(tree.branches) for tree in trees),
        "padding": sum(tree.padding for tree in trees) + tail * trees[0].cp_size,
    }
    return {name_of_tokens(kind): _Number(known=tokens[kind]) for kind in TOKEN_KINDS}


def _by_turn(of_turns: Mapping[str, Tensor], starts: Mapping[str, int], max_turns: int) -> dict[str, _Number]:
    return {
        f"by_turn/{turn + 1}/{name}": _Number(starts[f"by_turn/{name}"] + turn) if turn < len(value_K) else NOTHING
        for name, value_K in of_turns.items()
        for turn in range(max_turns)
    }


def _by_length(starts: Mapping[str, int], bucket: int, buckets: Sequence[int]) -> dict[str, _Number]:
    return {
        f"by_length/{bound}/{name}": _Number(starts[name]) if bound == bucket else NOTHING
        for name in ("loss", "nll", "margin", "accuracy", "chosen_gap", "rejected_gap")
        if name in starts
        for bound in buckets
    }


def _gaps(pair: PairReport) -> dict[str, Tensor]:
    """By turn: policy minus reference, which is what the preference pushes up or down, and long minus short context."""
    logp_K = pair.logp_K()
    gaps = {f"{answer}_gap": (f"policy_{answer}_logp", f"reference_{answer}_logp") for answer in ("chosen", "rejected")}
    gaps["long_short_gap"] = ("policy_long_chosen_logp", "policy_chosen_logp")
    return {name: logp_K[a] - logp_K[b] for name, (a, b) in gaps.items() if a in logp_K and b in logp_K}
