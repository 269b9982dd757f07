"""The predictions that a loss needs: where they stand, and to which sum each belongs.

Letters in shapes: S = tokens of a tree's sequence with padding, L = tokens of it that this rank holds, N = scored
predictions, B = branches, K = turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.layout import TreeLayout

NllTokens = Literal["all", "response"]
"""What an NLL counts: every predicted token of trunk + first branch (the released objective), or that branch's response
tokens only."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Predictions of one tree, or those of them that one context-parallel rank makes."""

    rows_N: Tensor
    """int64: the token, in the whole sequence or among the rank's, whose next token is predicted."""
    labels_N: Tensor
    """int64: that next token."""
    segment_N: Tensor
    """int64: b * K + t for turn t of branch b, B * K for no response span."""
    in_nll_N: Tensor
    """bool: the prediction counts in the NLL term."""
    num_tokens_BK: Tensor
    """int64: response tokens of each turn, on all ranks."""
    num_in_nll: int
    """Predictions of the whole tree that count in the NLL."""

    def each(self, do: Callable[[Tensor], Tensor]) -> "Targets":
        """The targets with ``do`` done to every tensor."""
        rows_N, labels_N, segment_N, in_nll_N, num_tokens_BK = map(
            do, (self.rows_N, self.labels_N, self.segment_N, self.in_nll_N, self.num_tokens_BK)
        )
        return Targets(rows_N, labels_N, segment_N, in_nll_N, num_tokens_BK, self.num_in_nll)

    def on_rank(self, tokens_L: Tensor, length: int) -> "Targets":
        """Select what a rank predicts that holds ``tokens_L`` (tree_tokens.rank_tokens) of a sequence of ``length``."""
        place_S = torch.full((length,), -1).index_put((tokens_L,), torch.arange(len(tokens_L)))
        rows_N = place_S[self.rows_N]
        own_N = rows_N >= 0
        return replace(
            self,
            rows_N=rows_N[own_N],
            labels_N=self.labels_N[own_N],
            segment_N=self.segment_N[own_N],
            in_nll_N=self.in_nll_N[own_N],
        )


def tree_targets(
    layout: TreeLayout, tokens_S: Tensor, spans_K2: Sequence[Tensor], nll_tokens: NllTokens | None
) -> Targets:
    """Find all targets of a tree.

    Args:
        tokens_S: the sequence's token ids, int64 [S].
        spans_K2: of each branch the half-open response spans as token positions inside it; a span never starts at 0,
            because a branch's first token belongs to the prompt.
        nll_tokens: what the NLL counts; None for a tree that has no part in it. The trunk is scored for "all" only.
    """
    num_branches, num_turns = len(spans_K2), len(spans_K2[0])
    no_segment = num_branches * num_turns
    next_token_S = torch.roll(tokens_S, -1)
    next_token_S[layout.trunk - 1] = tokens_S[layout.padded_trunk]  # across the padding
    segment_S = torch.full_like(tokens_S, no_segment)
    for number, (branch, spans) in enumerate(zip(layout.branch_slices, spans_K2, strict=True)):
        for turn, (start, stop) in enumerate(cast(list[list[int]], spans.tolist())):  # pyright: ignore[reportUnknownMemberType]
            # The token at position p of the branch is predicted by the token at p - 1.
            segment_S[branch.start + start - 1 : branch.start + stop - 1] = number * num_turns + turn
    in_nll_S = segment_S < (num_turns if nll_tokens else 0)
    if nll_tokens == "all":
        first = layout.branch_slices[0]
        in_nll_S[: layout.trunk] = True
        in_nll_S[first.start : first.stop - 1] = True  # the branch's last token ends the sequence
    rows_N = torch.nonzero(in_nll_S | (segment_S < no_segment)).squeeze(1)
    num_tokens_BK = torch.stack([spans[:, 1] - spans[:, 0] for spans in spans_K2])
    in_nll_N = in_nll_S[rows_N]
    return Targets(rows_N, next_token_S[rows_N], segment_S[rows_N], in_nll_N, num_tokens_BK, int(in_nll_N.sum().item()))


@dataclass(frozen=True, slots=True)
class TreeLogps:
    """What the objective needs of one tree; float64, so that rounding stays below that of the fp32 terms."""

    logp_BK: Tensor
    """Log-probabilities summed over the response span of each turn of each branch, nats."""
    num_tokens_BK: Tensor
    """int64: response tokens of each turn."""
    nll: Tensor
    """Scalar: negative log-probability of what counts in the NLL, summed, nats."""
    num_in_nll: int
    """Tokens that count in the NLL."""


def tree_logps(
    token_logp_N: Tensor, targets: Sequence[Targets], cp_group: ProcessGroup | None = None
) -> list[TreeLogps]:
    """Sum up the token log-probabilities of a micro-batch, tree by tree, over all ranks of ``cp_group``.

    The objective is not linear in these sums, so they are completed before it, and each rank then differentiates the
    whole loss with respect to its own terms: the backward pass of the sum over ranks hands every rank the gradient as
    it is.

    Args:
        token_logp_N: fp32, nats; the targets of the first tree, then those of the second, and so on.
    """
    parts = torch.split(token_logp_N.double(), [len(one.rows_N) for one in targets])
    sums = [_sums(logp_N, one) for logp_N, one in zip(parts, targets, strict=True)]
    if cp_group is not None and cp_group.size() > 1:
        total = cast(Tensor, _SumOverRanks.apply(torch.cat(sums), cp_group))
        sums = torch.split(total, [len(terms) for terms in sums])
    return [
        TreeLogps(terms[:-2].view_as(one.num_tokens_BK), one.num_tokens_BK, terms[-1], one.num_in_nll)
        for terms, one in zip(sums, targets, strict=True)
    ]


def _sums(logp_N: Tensor, targets: Targets) -> Tensor:
    """The sum of each segment, [B * K + 1], and of what counts in the NLL: [B * K + 2]."""
    by_segment = torch.zeros(targets.num_tokens_BK.numel() + 1, dtype=logp_N.dtype, device=logp_N.device)
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
