"""A training step, as far as its memory and its time depend on it, and the sizes of its tensors on one rank.

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
Tree = tuple[int, Sequence[int]]
"""Tokens of the trunk, and of each branch."""


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
    trees: Sequence[Tree]
    """Of the largest micro-batch."""
    sizes: ParallelSizes
    sequence_parallel: bool = True
    """Where there is tensor parallelism."""
    data: int = 1
    """Data-parallel ranks."""
    stage: int = 0
    """Of the pipeline; the first holds the most micro-batches."""
    num_microbatches: int = 8
    """A step's, on a data-parallel rank."""
    recompute: Recompute
    optimizer: Literal["adam", "rmsprop"]
    shares_optimizer: bool = True
    """--use-distributed-optimizer: data- and context-parallel ranks share the optimizer's state."""
    offloads_optimizer: bool = False
    """--optimizer-cpu-offload: the state and the fp32 weights are in the host's memory."""
    half_gradients: bool = False
    """--grad-reduce-in-bf16."""
    online_reference: bool = False
    """--longpo-online-reference: a second, frozen set of weights."""
    element_size: int = 2
    """Bytes of a weight and of an activation."""
    is_fused: bool = True
    """RMSNorm, SwiGLU and rotation are a kernel each, as on a GPU; torch's CPU kernels keep what they compute with."""

    @property
    def layout(self) -> PackLayout:
        trees = [tree_layout(trunk, branches, self.sizes.context) for trunk, branches in self.trees]
        return pack_layout(trees, self.sizes.tensor if self.sequence_parallel else 1)

    @property
    def gathers_tokens(self) -> bool:
        """Linear layers take the tokens of all tensor-parallel ranks, which hold a part each between them."""
        return self.sizes.tensor > 1 and self.sequence_parallel

    @property
    def num_layers(self) -> int:
        """Of a pipeline stage."""
        return self.options["num_layers"] // self.sizes.pipeline

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
    def is_first(self) -> bool:
        """The stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """The stage has the log-prob head."""
        return self.stage == self.sizes.pipeline - 1

    @property
    def in_flight(self) -> int:
        """Micro-batches whose activations a stage holds at once: one forward, one backward, as many as there are stages
        from it to the last."""
        return min(self.sizes.pipeline - self.stage, self.num_microbatches)

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
            x=token * hidden // (self.sizes.tensor if self.sequence_parallel else 1),
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
        ends = self.vocab * hidden * (self.is_first + self.is_last - self.is_tied) + hidden * self.is_last
        return self.num_layers * layer + ends
