"""A micro-batch through the model: pairs in, log-probabilities of the scored tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.model.attention import pair_params
from megatron_longpo.model.layout import (
    PackLayout,
    PairLayout,
    input_tokens,
    pack_layout,
    pair_layout,
    positions,
    share,
)
from megatron_longpo.model.logprob import token_logprobs
from megatron_longpo.model.targets import Targets, pair_targets


@dataclass(frozen=True, slots=True)
class PairInput:
    """One context-parallel rank's share of a pair. L = its tokens."""

    layout: PairLayout
    tokens_L: Tensor
    """int64 token ids."""
    positions_L: Tensor
    """int64: position of each token in its own conversation."""
    targets: Targets


@dataclass(frozen=True, slots=True)
class PackInput:
    """One context-parallel rank's share of a micro-batch, made ready for the model. L = its tokens, N = its targets."""

    layout: PackLayout
    tokens_L: Tensor
    positions_L: Tensor
    rows_N: Tensor
    """int64: the token, of the L, whose next one is predicted."""
    labels_N: Tensor
    """int64: that next token."""
    targets: tuple[Targets, ...]
    """Of each pair, with rows counted in the pair's own share."""

    def to(self, device: torch.device | str | int) -> "PackInput":
        """The same input on another device."""
        tokens_L, positions_L, rows_N, labels_N = (
            x.to(device, non_blocking=True) for x in (self.tokens_L, self.positions_L, self.rows_N, self.labels_N)
        )
        targets = tuple(one.to(device) for one in self.targets)
        return PackInput(self.layout, tokens_L, positions_L, rows_N, labels_N, targets)


@dataclass(frozen=True, slots=True)
class HeadContext:
    """What the log-prob head needs beside the hidden states."""

    rows_N: Tensor
    labels_N: Tensor
    vocab_size: int
    """Tokens of the real vocabulary."""
    tp_group: ProcessGroup


def pair_input(
    trunk_T: Tensor,
    chosen_T: Tensor,
    rejected_T: Tensor,
    chosen_spans_K2: Tensor,
    rejected_spans_K2: Tensor,
    *,
    nll_over_all: bool,
    cp_rank: int = 0,
    cp_size: int = 1,
) -> PairInput:
    """Lay a pair out and take the share of rank ``cp_rank`` of ``cp_size`` context-parallel ones.

    See targets.pair_targets for the rest.
    """
    layout = pair_layout(len(trunk_T), len(chosen_T), len(rejected_T), cp_size)
    tokens_S = input_tokens(layout, trunk_T, chosen_T, rejected_T)
    targets = pair_targets(layout, tokens_S, chosen_spans_K2, rejected_spans_K2, nll_over_all)
    share_L = share(layout, cp_rank)
    return PairInput(layout, tokens_S[share_L], positions(layout)[share_L], targets.of_share(share_L, layout.length))


def pack(pairs: Sequence[PairInput], multiple: int = 1) -> PackInput:
    """Put pairs into one micro-batch; see layout.pack_layout for ``multiple``."""
    layout = pack_layout([pair.layout for pair in pairs], multiple)
    tail = torch.zeros(layout.tail, dtype=torch.int64)
    return PackInput(
        layout,
        torch.cat([*(pair.tokens_L for pair in pairs), tail]),
        torch.cat([*(pair.positions_L for pair in pairs), tail]),
        torch.cat([part.start + pair.targets.rows_N for part, pair in zip(layout.parts, pairs, strict=True)]),
        torch.cat([pair.targets.labels_N for pair in pairs]),
        tuple(pair.targets for pair in pairs),
    )


def forward_pack(
    model: nn.Module, batch: PackInput, vocab_size: int, tp_group: ProcessGroup, keep_attention: bool = False
) -> Tensor:
    """Run this pipeline stage; see attention.pair_params for ``keep_attention``.

    Returns:
        On the last stage the log-probability of every target of this rank: fp32 [N], nats. On the others hidden states
        for the next.
    """
    return model(
        input_ids=batch.tokens_L.unsqueeze(0),
        position_ids=batch.positions_L.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=pair_params(batch.layout, batch.positions_L, keep_attention),
        output_processor=_logprob_head,
        output_processor_context=HeadContext(batch.rows_N, batch.labels_N, vocab_size, tp_group),
    )


def _logprob_head(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    config: Any,
    context: HeadContext,
    **_: Any,
) -> Tensor:
    """GPTModel's ``output_processor``: called on the last stage in the place of the output layer and its loss."""
    return token_logprobs(
        hidden_states,
        output_layer.weight if output_weight is None else output_weight,
        context.rows_N,
        context.labels_N,
        context.vocab_size,
        context.tp_group,
        config.sequence_parallel,
    )
