"""One pair through the model: ids in, log-probabilities of the scored tokens out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.model.attention import pair_params
from megatron_longpo.model.layout import PairLayout, Targets, input_tokens, pair_layout, pair_targets, positions
from megatron_longpo.model.logprob import token_logprobs


@dataclass(frozen=True, slots=True)
class PairInput:
    """A pair made ready for the model."""

    layout: PairLayout
    tokens_S: Tensor
    """int64 token ids."""
    targets: Targets

    def to(self, device: torch.device | str | int) -> "PairInput":
        """The same input on another device."""
        return PairInput(self.layout, self.tokens_S.to(device, non_blocking=True), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class HeadContext:
    """What the log-prob head needs beside the hidden states."""

    targets: Targets
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
    multiple: int = 1,
) -> PairInput:
    """Lay a pair out; see layout.pair_layout for ``multiple`` and layout.pair_targets for the rest."""
    layout = pair_layout(len(trunk_T), len(chosen_T), len(rejected_T), multiple)
    tokens_S = input_tokens(layout, trunk_T, chosen_T, rejected_T)
    targets = pair_targets(layout, tokens_S, chosen_spans_K2, rejected_spans_K2, nll_over_all)
    return PairInput(layout, tokens_S, targets)


def forward_pair(model: nn.Module, pair: PairInput, vocab_size: int, tp_group: ProcessGroup) -> Tensor:
    """Run this pipeline stage.

    Returns:
        On the last stage the log-probability of every target: fp32 [N], nats. On the others hidden states for the next.
    """
    positions_S = positions(pair.layout, pair.tokens_S.device)
    return model(
        input_ids=pair.tokens_S.unsqueeze(0),
        position_ids=positions_S.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=pair_params(pair.layout, positions_S),
        output_processor=_logprob_head,
        output_processor_context=HeadContext(pair.targets, vocab_size, tp_group),
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
        context.targets.rows_N,
        context.targets.labels_N,
        context.vocab_size,
        context.tp_group,
        config.sequence_parallel,
    )
