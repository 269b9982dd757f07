"""How much memory one GPU needs for a training step, by part: plain formulas, with the reason beside each.

benchmarks/memory_at_length.py counts the same, tensor by tensor, while the code runs; a test holds the two within 10%
of each other. What both leave out: the CUDA context, the buffers of cuBLAS and NCCL, and gaps between tensors.
"""

from dataclasses import dataclass, replace

from megatron_longpo.plan.layer_memory import (
    Parts,
    attention_backward,
    embedding_backward,
    head_backward,
    kept_by_layer,
    mlp_backward,
)
from megatron_longpo.plan.step_shape import StepShape

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "reference",
    "layer inputs",
    "kept attention",
    "attention",
    "MLP",
    "residual stream",
    "log-prob head",
    "embedding",
    "communication",
    "kernel workspace",
    "inputs and targets",
)
OPTIMIZER_BYTES = {"adam": 8, "rmsprop": 4}
"""fp32 state of a parameter."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a rank needs."""

    parts: Parts
    """Bytes by name, those of PARTS, at the worst moment."""
    moments: dict[str, int]
    """Bytes in all, at each moment that may be the worst."""

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return sum(self.parts.values())


def step_memory(shape: StepShape) -> StepMemory:
    """Add up the parts, on the context-parallel rank that needs most."""
    in_flight, layers = shape.in_flight, shape.num_layers
    kept = {part: size * layers * in_flight for part, size in kept_by_layer(shape).items()}
    # A tied head's placeholder of the weight's gradient waits for the embedding's gradient.
    waiting = {"log-prob head": shape.embedding if shape.is_tied else 0}
    moments: dict[str, tuple[Parts, ...]] = {
        "MLP": (kept, waiting, mlp_backward(shape)),
        "attention": (kept, waiting, attention_backward(shape)),
    }
    if shape.is_first:  # after the layers, which keep what is of the other micro-batches in flight
        others = {part: size * layers * (in_flight - 1) for part, size in kept_by_layer(shape).items()}
        moments["embedding"] = (others, waiting, embedding_backward(shape))
    if shape.is_last:
        moments["log-prob head"] = (kept, head_backward(shape))
    always = _always(shape)
    by_moment = {name: {part: _sum(part, always, *some) for part in PARTS} for name, some in moments.items()}
    totals = {name: sum(parts.values()) for name, parts in by_moment.items()}
    return StepMemory(by_moment[max(totals, key=lambda name: totals[name])], totals)


def worst_stage(shape: StepShape) -> StepMemory:
    """The memory of the pipeline stage that needs most, whichever stage ``shape`` is of."""
    ends = {0, shape.sizes.pipeline - 1}  # those between hold less than the first
    return max((step_memory(replace(shape, stage=stage)) for stage in ends), key=lambda memory: memory.total)


def optimizer_state(shape: StepShape) -> int:
    """Bytes of a rank's part of the optimizer's state, wherever it is."""
    main = 4 if shape.element_size < 4 else 0  # fp32 copies of half-precision weights
    sharing = shape.data * shape.sizes.context if shape.shares_optimizer else 1
    return shape.num_parameters * (main + OPTIMIZER_BYTES[shape.optimizer]) // sharing


def _sum(part: str, *some: Parts) -> int:
    return sum(parts.get(part, 0) for parts in some)


def _always(shape: StepShape) -> Parts:
    """What is there whatever the layers do."""
    parameters = shape.num_parameters
    return {
        "weights": shape.element_size * parameters,
        "gradients": (2 if shape.half_gradients else 4) * parameters,  # in Megatron's buffers
        "optimizer": optimizer_state(shape) if not shape.offloads_optimizer else 0,
        "reference": shape.element_size * parameters if shape.online_reference else 0,
        # int64 ids, positions, rows, labels, rows and labels in their tree, segments; bool; fp32 angles.
        "inputs and targets": shape.in_flight * shape.layout.length * (7 * 8 + 1 + 4 * shape.head_dim),
        # Sequence parallelism: one buffer for the gathered inputs of all linear layers (megatron/core/utils.py,
        # GlobalMemoryBuffer).
        "communication": shape.tensors.gathered if shape.gathers_tokens else 0,
    }
