"""How much a GPU computes in a step, and how long that takes at the rates of machines.py.

A pass over trees is cheap to describe: linear layers cost the same for every token, attention what model/flops.py
says. What is computed in a training step, in forward passes: linear layers 1 forward, 2 backward, 1 again with full
recomputation or keep-attention; attention 1 forward, 2.5 backward (its kernels compute the scores again), 1 again with
full or selective recomputation; the log-prob head 1 forward, 3 backward (model/logprob.py computes logits again).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.model.flops import separate_flops, squared_lengths, tree_flops
from megatron_longpo.plan.machines import GIGA, TERA, GpuKind
from megatron_longpo.plan.step_shape import Recompute, StepShape

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of one forward pass over each of several trees, float64 [T]."""

    linear: FloatArray
    attention: FloatArray
    head: FloatArray

    def executed(self, recompute: Recompute) -> FloatArray:
        """FLOPs that a training step computes, recomputation included."""
        linear, forward, backward = passes(recompute)
        return linear * self.linear + (forward + backward) * self.attention + 4 * self.head


def passes(recompute: Recompute) -> tuple[float, float, float]:
    """Passes of the linear layers; of attention forward; of attention backward, in forward FLOPs."""
    again = 1 if recompute in ("full", "keep-attention") else 0
    return 3 + again, 2 if recompute in ("full", "selective") else 1, 2.5


def tree_work(options: Mapping[str, Any], lengths_T3: IntArray, all_rows: bool = True) -> Work:
    """Count one shared pass over trees.

    Args:
        options: the model (hf.config.megatron_options).
        lengths_T3: tokens of the trunk and of two branches; 0 for a branch that is not there.
        all_rows: log-probs of all tokens (--longpo-nll-tokens all), or of the branches alone.
    """
    rows_T = (lengths_T3 if all_rows else lengths_T3[:, 1:]).sum(1)
    per_row = 2.0 * options["hidden_size"] * options["vocab_size"]
    attention_T = 2 * options["num_layers"] * options["num_attention_heads"] * options["kv_channels"]
    attention = attention_T * squared_lengths(lengths_T3)
    everything = tree_flops(options, lengths_T3)
    return Work(everything - attention - per_row * lengths_T3.sum(1), attention, per_row * rows_T)


def model_flops(options: Mapping[str, Any], lengths_T3: IntArray) -> float:
    """FLOPs of forward and backward passes as MFU counts them: no recomputation, causal attention's half."""
    return 3 * float(tree_flops(options, lengths_T3).sum())


def pair_flops(options: Mapping[str, Any], lengths_T3: IntArray) -> float:
    """What the same trees cost as one whole sequence a branch, which others run."""
    return 3 * float(separate_flops(options, lengths_T3).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The layout and the machine that work is done with."""

    shape: StepShape
    kind: GpuKind
    kernel: str
    efficiency: float
    """Of the kernels' rates, what a run reaches: 1 is a step of nothing but kernels."""

    @property
    def total(self) -> int:
        """GPUs."""
        return self.shape.sizes.together * self.shape.data

    def seconds(self, work: Work) -> dict[str, FloatArray]:
        """Each tree's time on a GPU of the busiest pipeline stage, by what takes it."""
        sizes, kind = self.shape.sizes, self.kind
        linear, forward, backward = passes(self.shape.recompute)
        shared = sizes.tensor * sizes.context * TERA * self.efficiency
        attention = work.attention / sizes.pipeline
        forward_rate, backward_rate = kind.attention_tflops[self.kernel]
        return {
            "linear layers": linear * work.linear / sizes.pipeline / (shared * kind.matmul_tflops),
            "attention": attention * (forward / forward_rate + backward / backward_rate) / shared,
            "log-prob head": 4 * work.head / (shared * kind.matmul_tflops),
        }

    def exchange_seconds(self, tokens_T: FloatArray, attention_T: FloatArray) -> dict[str, FloatArray]:
        """What the same trees wait for other GPUs in a layer's exchanges, ``attention_T`` being their attention's time.

        Tensor parallelism: the tokens of a layer are gathered and scattered twice a pass, and gathered twice more for
        the weights' gradients (megatron/core/tensor_parallel/layers.py). Context parallelism: keys and values go round
        once a forward pass, with their fp32 gradients once more a backward pass, beside attention; what is longer than
        attention is waited for.
        """
        sizes, shape = self.shape.sizes, self.shape
        linear, forward, _ = passes(shape.recompute)
        per_token = shape.element_size * shape.num_layers * tokens_T / sizes.context
        hidden = per_token * shape.options["hidden_size"] * (sizes.tensor - 1) / sizes.tensor
        keys = 2 * per_token * shape.groups * shape.head_dim * (sizes.context - 1)
        ring = keys * (forward + 1 + 4 / shape.element_size) / self._link(sizes.tensor * sizes.context)
        return {
            "tensor-parallel exchange": hidden * (4 * (linear - 1) + 2) / self._link(sizes.tensor),
            "context-parallel exchange": np.maximum(0, ring - attention_T),
        }

    def end_of_step(self) -> dict[str, float]:
        """Seconds that do not depend on the tokens: gradients and weights exchanged, not hidden; the optimizer."""
        shape, sharing = self.shape, self.shape.data * self.shape.sizes.context
        moved = shape.num_parameters * ((2 if shape.half_gradients else 4) + shape.element_size) * (sharing - 1)
        own = shape.num_parameters / (sharing if shape.shares_optimizer else 1)
        states = 2 if shape.optimizer == "adam" else 1
        # Gradient read; fp32 weight and states read and written; weight written.
        touched = 4 + 8 * (1 + states) + shape.element_size
        rate = self.kind.host_gbs if shape.offloads_optimizer else self.kind.memory_gbs
        return {
            "gradients and weights": moved / sharing / self._link(shape.sizes.tensor * sharing),
            "optimizer": own * touched / (rate * GIGA),
        }

    def _link(self, span: int) -> float:
        """Bytes/s between ranks of which ``span`` in a row are one group: within a machine, or through its network."""
        return (self.kind.link_gbs if span <= self.kind.gpus_per_node else self.kind.network_gbs) * GIGA
