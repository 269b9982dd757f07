"""A micro-batch through the model: trees in, log-probabilities of the scored tokens out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.model.attention import tree_params
from megatron_longpo.model.layout import PackLayout, TreeLayout, pack_layout, tree_layout
from megatron_longpo.model.logprob import token_logprobs
from megatron_longpo.model.targets import NllTokens, Targets, tree_targets
from megatron_longpo.model.tree_tokens import input_tokens, positions, rank_tokens
from megatron_longpo.platform import pinned


@dataclass(frozen=True, slots=True)
class TreeInput:
    """What one context-parallel rank holds of a tree. L = its tokens."""

    layout: TreeLayout
    tokens_L: Tensor
    """int64 token ids."""
    positions_L: Tensor
    """int64: position of each token in its own conversation."""
    targets: Targets


@dataclass(frozen=True, slots=True)
class PackInput:
    """What one context-parallel rank holds of a micro-batch, as the model takes it. L = its tokens, N = its targets."""

    layout: PackLayout
    tokens_L: Tensor
    positions_L: Tensor
    rows_N: Tensor
    """int64: the token, of the L, whose next one is predicted."""
    labels_N: Tensor
    """int64: that next token."""
    targets: tuple[Targets, ...]
    """The targets of each tree, with rows counted among the rank's tokens of that tree."""

    def each(self, do: Callable[[Tensor], Tensor]) -> "PackInput":
        """The input with ``do`` done to every tensor."""
        tokens_L, positions_L, rows_N, labels_N = map(do, (self.tokens_L, self.positions_L, self.rows_N, self.labels_N))
        targets = tuple(one.each(do) for one in self.targets)
        return PackInput(self.layout, tokens_L, positions_L, rows_N, labels_N, targets)

    def to(self, device: torch.device | str | int) -> "PackInput":
        """Copy the input to another device, from pinned memory if that is a GPU, so that the host need not wait."""
        return self.each(lambda x: pinned(x).to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class HeadContext:
    """What the log-prob head needs beside the hidden states."""

    rows_N: Tensor
    labels_N: Tensor
    vocab_size: int
    """Tokens of the real vocabulary."""
    tp_group: ProcessGroup


def tree_input(
    conversation: Mapping[str, Tensor],
    answers: Sequence[str],
    *,
    nll_tokens: NllTokens | None,
    cp_rank: int = 0,
    cp_size: int = 1,
    trunk_multiple: int = 1,
) -> TreeInput:
    """Lay a tree out and take what rank ``cp_rank`` of ``cp_size`` context-parallel ones holds.

    Args:
        conversation: data/dataset.py's Conversation, as tensors.
        answers: which of its answers are branches, "chosen", "rejected" or both; the NLL reads the first.
        nll_tokens: see targets.tree_targets.
        trunk_multiple: see layout.tree_layout.
    """
    trunk_T, branches_T = conversation["trunk"], [conversation[answer] for answer in answers]
    layout = tree_layout(len(trunk_T), [len(branch_T) for branch_T in branches_T], cp_size, trunk_multiple)
    tokens_S = input_tokens(layout, trunk_T, branches_T)
    targets = tree_targets(layout, tokens_S, [conversation[f"{answer}_spans"] for answer in answers], nll_tokens)
    own_L = rank_tokens(layout, cp_rank)
    return TreeInput(layout, tokens_S[own_L], positions(layout)[own_L], targets.on_rank(own_L, layout.length))


def pack(trees: Sequence[TreeInput], multiple: int = 1) -> PackInput:
    """Put trees into one micro-batch; see layout.pack_layout for ``multiple``."""
    layout = pack_layout([tree.layout for tree in trees], multiple)
    tail = torch.zeros(layout.tail, dtype=torch.int64)
    return PackInput(
        layout,
        torch.cat([*(tree.tokens_L for tree in trees), tail]),
        torch.cat([*(tree.positions_L for tree in trees), tail]),
        torch.cat([part.start + tree.targets.rows_N for part, tree in zip(layout.parts, trees, strict=True)]),
        torch.cat([tree.targets.labels_N for tree in trees]),
        tuple(tree.targets for tree in trees),
    )


def forward_pack(
    model: nn.Module, batch: PackInput, vocab_size: int, tp_group: ProcessGroup, keep_attention: bool = False
) -> Tensor:
    """Run this pipeline stage; see attention.tree_params for ``keep_attention``.

    Returns:
        On the last stage the log-probability of every target of this rank: fp32 [N], nats. On the others hidden states
        for the next.
    """
    return model(
        input_ids=batch.tokens_L.unsqueeze(0),
        position_ids=batch.positions_L.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=tree_params(batch.layout, batch.positions_L, keep_attention),
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
    """GPTModel's ``output_processor``: called on the last stage in the place of the output layer and its loss.

    So the output layer, whose weight is used, is never called, and what hangs on its call is called here: with
    ``--overlap-param-gather`` the wait for the weight's all-gather (megatron/core/distributed/
    distributed_data_parallel.py, ``_make_forward_pre_hook``).
    """
    for hook in tuple(output_layer._forward_pre_hooks.values()):
        hook(output_layer, ())
    return token_logprobs(
        hidden_states,
        output_layer.weight if output_weight is None else output_weight,
        context.rows_N,
        context.labels_N,
        context.vocab_size,
        context.tp_group,
        config.sequence_parallel,
    )
