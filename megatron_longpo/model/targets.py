"""The predictions that a loss needs: where they stand, and to which sum each belongs.

Letters in shapes: S = tokens of the whole sequence with padding, N = scored predictions, K = turns of the pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.layout import PairLayout


@dataclass(frozen=True, slots=True)
class Targets:
    """Predictions of one pair, or the share of them that one context-parallel rank makes."""

    rows_N: Tensor
    """int64: the token, in the whole sequence or the rank's share of it, whose next token is predicted."""
    labels_N: Tensor
    """int64: that next token."""
    segment_N: Tensor
    """int64: t for turn t of the chosen branch, K + t for turn t of the rejected one, 2K for no response span."""
    in_nll_N: Tensor
    """bool: the prediction counts in the NLL term."""
    num_turns: int
    """K."""
    num_in_nll: int
    """Predictions of the whole pair that count in the NLL."""

    def to(self, device: torch.device | str | int) -> "Targets":
        """The same targets on another device."""
        rows_N, labels_N, segment_N, in_nll_N = (
            x.to(device, non_blocking=True) for x in (self.rows_N, self.labels_N, self.segment_N, self.in_nll_N)
        )
        return replace(self, rows_N=rows_N, labels_N=labels_N, segment_N=segment_N, in_nll_N=in_nll_N)

    def of_share(self, share_L: Tensor, length: int) -> "Targets":
        """Those that a rank predicts which holds the tokens ``share_L`` (layout.share) of ``length`` in all."""
        local_S = torch.full((length,), -1).index_put((share_L,), torch.arange(len(share_L)))
        rows_N = local_S[self.rows_N]
        own = rows_N >= 0
        return replace(
            self,
            rows_N=rows_N[own],
            labels_N=self.labels_N[own],
            segment_N=self.segment_N[own],
            in_nll_N=self.in_nll_N[own],
        )


def pair_targets(
    layout: PairLayout, tokens_S: Tensor, chosen_spans_K2: Tensor, rejected_spans_K2: Tensor, nll_over_all: bool
) -> Targets:
    """The targets of a pair, all of them.

    Args:
        tokens_S: the sequence's token ids, int64 [S].
        chosen_spans_K2, rejected_spans_K2: half-open response spans as token positions inside their branch; a span
            never starts at 0, because the opener is not a response token.
        nll_over_all: the NLL counts every predicted token of trunk + chosen branch (the released objective);
            otherwise the chosen response tokens only, and the trunk is not scored at all.
    """
    num_turns = len(chosen_spans_K2)
    no_segment = 2 * num_turns
    chosen, rejected = layout.branch_slices
    next_token = torch.roll(tokens_S, -1)
    next_token[layout.trunk - 1] = tokens_S[chosen.start]  # across the padding
    segment_S = torch.full_like(tokens_S, no_segment)
    for branch, spans, first in ((chosen, chosen_spans_K2, 0), (rejected, rejected_spans_K2, num_turns)):
        for turn, (start, stop) in enumerate(cast(list[list[int]], spans.tolist())):  # pyright: ignore[reportUnknownMemberType]
            # The token at position p of the branch is predicted by the token at p - 1.
            segment_S[branch.start + start - 1 : branch.start + stop - 1] = first + turn
    in_nll_S = segment_S < num_turns
    if nll_over_all:
        in_nll_S[: layout.trunk] = True
        in_nll_S[chosen.start : chosen.stop - 1] = True  # the branch's last token ends the sequence
    rows_N = torch.nonzero(in_nll_S | (segment_S < no_segment)).squeeze(1)
    return Targets(
        rows_N, next_token[rows_N], segment_S[rows_N], in_nll_S[rows_N], num_turns, int(in_nll_S.sum().item())
    )


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What the objective needs of one pair; float64, so that rounding stays below that of the fp32 terms."""

    chosen_K: Tensor
    rejected_K: Tensor
    """Log-probabilities summed over the response span of each turn, nats."""
    nll: Tensor
    """Scalar: mean negative log-probability of what counts in the NLL, nats per token."""


def pair_logps(
    token_logp_N: Tensor, targets: Sequence[Targets], cp_group: ProcessGroup | None = None
) -> list[PairLogps]:
    """Sum up the token log-probabilities of a micro-batch, pair by pair, over all ranks of ``cp_group``.

    The objective is not linear in these sums, so they are completed before it, and each rank then differentiates the
    whole loss with respect to its own terms: the backward pass of the sum over ranks hands every rank the gradient as
    it is.

    Args:
        token_logp_N: fp32, nats; the targets of the first pair, then those of the second, and so on.
    """
    parts = token_logp_N.double().split([len(one.rows_N) for one in targets])
    sums = [_sums(logp_N, one) for logp_N, one in zip(parts, targets, strict=True)]
    if cp_group is not None and cp_group.size() > 1:
        total = cast(Tensor, _SumOverRanks.apply(torch.cat(sums), cp_group))
        sums = total.split([len(terms) for terms in sums])
    return [
        PairLogps(terms[: one.num_turns], terms[one.num_turns : 2 * one.num_turns], terms[-1] / one.num_in_nll)
        for terms, one in zip(sums, targets, strict=True)
    ]


def _sums(logp_N: Tensor, targets: Targets) -> Tensor:
    """By segment, [2K + 1], and the sum of what counts in the NLL: [2K + 2]."""
    by_segment = torch.zeros(2 * targets.num_turns + 1, dtype=logp_N.dtype, device=logp_N.device)
    by_segment = by_segment.index_add(0, targets.segment_N, logp_N)
    return torch.cat((by_segment, -(logp_N * targets.in_nll_N).sum(0, keepdim=True)))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Tensor, group: ProcessGroup) -> Tensor:
        total = terms.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None
