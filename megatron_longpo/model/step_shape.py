"""A training step, as far as its memory depends on it, and the sizes of its tensors on one rank.

Letters: L = tokens that the rank holds, E = hidden size, F = rows of gate_proj, H = query heads, G = key-value heads,
D = size of a head (F, H and G of this tensor-parallel rank).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_longpo.model.layout import PackLayout, pack_layout, tree_layout
from megatron_longpo.model.parallel_sizes import ParallelSizes

Recompute = Literal["none", "selective", "full", "keep-attention"]
"""``selective`` is Megatron's default of that name, core attention alone."""


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """Bytes of the tensors that a layer makes."""

    x: int
    """[L, 1, E] between the layers; under sequence parallelism this rank's part of the tokens."""
    gathered: int
    """[L, 1, E] of all tokens."""
    q: int
    """[L, 1, H, D], as attention's output."""
    kv: int
    """[L, 1, G, D], keys or values."""
    lse: int
    """[1, H, L] fp32."""
    f: int
    """[L, 1, F]."""
    angles: int
    """cos and sin, [L, 1, 1, D] each, of queries and again of keys, kept for the backward pass of the rotation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """What decides."""

    options: Mapping[str, Any]
    """The model: hf.config.megatron_options."""
    trunk: int
    branches: Sequence[int]
    """Tokens of the one tree of a micro-batch."""
    sizes: ParallelSizes
    """Tensor parallelism is taken to come with ``--sequence-parallel``."""
    data: int = 1
    """Data-parallel ranks, which share the optimizer with the context-parallel ones (--use-distributed-optimizer)."""
    stage: int = 0
    """Of the pipeline; the first holds the most micro-batches."""
    recompute: Recompute
    optimizer: Literal["adam", "rmsprop"]
    element_size: int = 2
    """Bytes of a weight and of an activation."""

    @property
    def layout(self) -> PackLayout:
        tree = tree_layout(self.trunk, self.branches, self.sizes.context)
        return pack_layout([tree], self.sizes.tensor)

    @property
    def heads(self) -> int:
        """Query heads of a rank."""
        return self.options["num_attention_heads"] // self.sizes.tensor

    @property
    def groups(self) -> int:
        """Key-value heads of a rank; with fewer of them than ranks, several ranks hold the same one."""
        return max(1, self.options["num_query_groups"] // self.sizes.tensor)

    @property
    def head_dim(self) -> int:
        return self.options["kv_channels"]

    @property
    def ffn(self) -> int:
        """Rows of gate_proj, of a rank."""
        return self.options["ffn_hidden_size"] // self.sizes.tensor

    @property
    def vocab(self) -> int:
        """Rows of the embedding of a rank; padded, Megatron's ``--make-vocab-size-divisible-by`` is 128."""
        multiple = 128 * self.sizes.tensor
        return -(-self.options["vocab_size"] // multiple) * 128

    @property
    def is_tied(self) -> bool:
        """The stage's output layer is its embedding."""
        return self.sizes.pipeline == 1 and not self.options["untie_embeddings_and_output_weights"]

    @property
    def embedding(self) -> int:
        """Bytes of the embedding's weight."""
        return self.vocab * self.options["hidden_size"] * self.element_size

    @property
    def keeps_layers(self) -> bool:
        """Autograd keeps what a layer makes, all of it or nearly; nothing is computed again."""
        return self.recompute in ("none", "selective")

    @property
    def tensors(self) -> TensorSizes:
        token, hidden = self.layout.length * self.element_size, self.options["hidden_size"]
        return TensorSizes(
            x=token * hidden // self.sizes.tensor,
            gathered=token * hidden,
            q=token * self.heads * self.head_dim,
            kv=token * self.groups * self.head_dim,
            lse=self.layout.length * self.heads * 4,
            f=token * self.ffn,
            angles=4 * token * self.head_dim,
        )

    @property
    def num_parameters(self) -> int:
        """Of one rank of the pipeline stage."""
        options, hidden = self.options, self.options["hidden_size"]
        queries, keys = self.heads * self.head_dim, self.groups * self.head_dim
        layer = hidden * (queries + 2 * keys) + queries * hidden + 3 * self.ffn * hidden + 2 * hidden
        layer += queries + 2 * keys if options["add_qkv_bias"] else 0
        layer += 2 * self.head_dim if options["qk_layernorm"] else 0
        first, last = self.stage == 0, self.stage == self.sizes.pipeline - 1
        ends = self.vocab * hidden * (first + last - self.is_tied) + hidden * last
        return options["num_layers"] // self.sizes.pipeline * layer + ends
