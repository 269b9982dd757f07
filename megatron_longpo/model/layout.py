"""Where the tokens of a pair stand in the one sequence that the model sees: pure index arithmetic.

A pair runs as ``[trunk | chosen | rejected | padding]``. The trunk stops just before the token that predicts the
first answer; each branch opens with its own copy of that token, at the position that follows the trunk. So

* both branches count their positions on from the trunk's length;
* every response token is predicted by a token of its own branch;
* the trunk's last token predicts the opener, which is the same token in both branches.

Letters in shapes: S = tokens of the sequence with padding, N = scored predictions, K = turns of the pair.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLayout:
    """Lengths in tokens of the parts of one sequence; the parts follow each other in this order."""

    trunk: int
    chosen: int
    rejected: int
    padding: int = 0

    def __post_init__(self) -> None:
        if min(self.trunk, self.chosen, self.rejected) < 1 or self.padding < 0:
            raise ValueError(f"trunk and branches need at least one token each, padding none or more: {self}")

    @property
    def length(self) -> int:
        """S: all tokens, padding included."""
        return self.trunk + self.chosen + self.rejected + self.padding

    @property
    def trunk_slice(self) -> slice:
        return slice(0, self.trunk)

    @property
    def branches_slice(self) -> slice:
        """Both branches, chosen first, without the padding."""
        return slice(self.trunk, self.trunk + self.chosen + self.rejected)

    @property
    def branch_slices(self) -> tuple[slice, slice]:
        """The chosen and the rejected branch."""
        border = self.trunk + self.chosen
        return slice(self.trunk, border), slice(border, border + self.rejected)


def pair_layout(trunk: int, chosen: int, rejected: int, multiple: int = 1) -> PairLayout:
    """The layout of a pair with these lengths (tokens), padded at the end to a multiple of ``multiple``.

    Sequence parallelism cuts the sequence into as many equal parts as there are tensor-parallel ranks.
    """
    return PairLayout(trunk, chosen, rejected, padding=-(trunk + chosen + rejected) % multiple)


def input_tokens(layout: PairLayout, trunk_T: Tensor, chosen_T: Tensor, rejected_T: Tensor) -> Tensor:
    """The token ids of the sequence, int64 [S]; padding is token 0, which nothing attends to and no loss reads."""
    padding = trunk_T.new_zeros(layout.padding)
    return torch.cat((trunk_T, chosen_T, rejected_T, padding))


def positions(layout: PairLayout, device: torch.device | str = "cpu") -> Tensor:
    """The position of every token in its own conversation, int64 [S]: both branches continue from the trunk."""
    trunk, chosen, rejected, padding = (
        torch.arange(start, start + length, device=device)
        for start, length in (
            (0, layout.trunk),
            (layout.trunk, layout.chosen),
            (layout.trunk, layout.rejected),
            (0, layout.padding),
        )
    )
    return torch.cat((trunk, chosen, rejected, padding))


@dataclass(frozen=True, slots=True)
class Targets:
    """The predictions that a loss needs, and to which sum each belongs."""

    rows_N: Tensor
    """int64: the position in the sequence whose next token is predicted."""
    labels_N: Tensor
    """int64: that next token."""
    segment_N: Tensor
    """int64: t for turn t of the chosen branch, K + t for turn t of the rejected one, 2K for no response span."""
    in_nll_N: Tensor
    """bool: the prediction counts in the NLL term."""
    num_turns: int
    """K."""

    def to(self, device: torch.device | str | int) -> "Targets":
        """The same targets on another device."""
        tensors = (x.to(device, non_blocking=True) for x in (self.rows_N, self.labels_N, self.segment_N, self.in_nll_N))
        return Targets(*tensors, num_turns=self.num_turns)


def pair_targets(
    layout: PairLayout, tokens_S: Tensor, chosen_spans_K2: Tensor, rejected_spans_K2: Tensor, nll_over_all: bool
) -> Targets:
    """The targets of a pair.

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
    segment_S = torch.full_like(tokens_S, no_segment)
    for branch, spans, first in ((chosen, chosen_spans_K2, 0), (rejected, rejected_spans_K2, num_turns)):
        for turn, (start, stop) in enumerate(cast(list[list[int]], spans.tolist())):  # pyright: ignore[reportUnknownMemberType]
            # The token at position p of the branch is predicted by the token at p - 1.
            segment_S[branch.start + start - 1 : branch.start + stop - 1] = first + turn
    in_nll_S = segment_S < num_turns
    if nll_over_all:
        # All of trunk + chosen predicts its next token but the very last, which ends the sequence. The trunk's last
        # token is followed by the chosen opener, so the roll has the right label there too.
        in_nll_S[: chosen.stop - 1] = True
    rows_N = torch.nonzero(in_nll_S | (segment_S < no_segment)).squeeze(1)
    return Targets(rows_N, next_token[rows_N], segment_S[rows_N], in_nll_S[rows_N], num_turns)


def sum_by_turn(token_logp_N: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Log-probabilities summed over each response span: (chosen [K], rejected [K]), float64, nats.

    The sums run in float64 so that their rounding stays below that of the fp32 terms at any length.
    """
    num_turns = targets.num_turns
    sums = torch.zeros(2 * num_turns + 1, dtype=torch.float64, device=token_logp_N.device)
    sums = sums.index_add(0, targets.segment_N, token_logp_N.double())
    return sums[:num_turns], sums[num_turns : 2 * num_turns]


def mean_nll(token_logp_N: Tensor, targets: Targets) -> Tensor:
    """Mean negative log-probability over the predictions that count in the NLL: scalar, float64, nats per token."""
    weights = targets.in_nll_N.double()
    return -(token_logp_N.double() * weights).sum() / weights.sum()
