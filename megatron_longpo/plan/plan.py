"""A run planned: does it fit on its GPUs, and how long does it take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths
from megatron_longpo.model.flops import tree_flops
from megatron_longpo.plan.machines import GpuKind
from megatron_longpo.plan.memory import StepMemory, optimizer_state, worst_stage
from megatron_longpo.plan.step_shape import StepShape
from megatron_longpo.plan.work import FloatArray, Rates, model_flops, pair_flops, tree_work

Verdict = Literal["OK", "TIGHT", "OUT OF MEMORY"]
TIGHT_ABOVE = 0.92
"""Of the room on a GPU; what is derived was within 10% of what was measured (benchmarks/plan_accuracy.py)."""
MOST_STEPS = 20
"""That are dealt out to find the mean step of a dataset; they are spread over it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The pairs of a run."""

    trees: TreeLengths
    """What the objective reads of every pair, or of one batch that all others are like."""
    num_pairs: int
    """Of an epoch."""
    global_batch_size: int
    max_tokens: int | None
    """Of a micro-batch (--longpo-tokens-per-microbatch)."""
    all_rows: bool = True
    """--longpo-nll-tokens all."""

    @property
    def num_different(self) -> int:
        """Pairs whose lengths are known."""
        return len(self.trees.tokens)

    @property
    def num_dealt(self) -> int:
        """Steps that are dealt out."""
        return max(1, min(self.num_different // self.global_batch_size, MOST_STEPS))

    @property
    def num_steps(self) -> int:
        """Of an epoch; what does not fill a batch is left out, as in training."""
        return max(1, self.num_pairs // self.global_batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a run is divided, and what it computes again: the settings that a plan may change."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    recompute: Literal["none", "selective", "full", "keep-attention"] = "none"
    offloads_optimizer: bool = False
    half_gradients: bool = False

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    def changes(self, other: "Layout") -> int:
        """In how many settings two differ."""
        names = ("tensor", "pipeline", "context", "recompute", "offloads_optimizer", "half_gradients")
        return sum(getattr(self, name) != getattr(other, name) for name in names)

    def as_options(self) -> str:
        """On the command line of training."""
        sizes = {"tensor-model": self.tensor, "pipeline-model": self.pipeline, "context": self.context}
        words = [f"--{axis}-parallel-size {size}" for axis, size in sizes.items() if size > 1]
        words += ["--sequence-parallel"] if self.tensor > 1 else []
        words += [_RECOMPUTE[self.recompute]] if self.recompute != "none" else []
        words += ["--optimizer-cpu-offload"] if self.offloads_optimizer else []
        words += ["--grad-reduce-in-bf16"] if self.half_gradients else []
        return " ".join(words) or "(no option)"


_RECOMPUTE = {
    "keep-attention": "--longpo-recompute keep-attention",
    "full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "selective": "--recompute-granularity selective",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What comes of a layout."""

    layout: Layout
    memory: StepMemory
    """Of the GPU that needs most."""
    room: float
    """Bytes that such a GPU has for tensors."""
    host_bytes: int
    """Of a machine, for offloaded optimizers."""
    seconds: dict[str, float]
    """Of a mean step, by what takes them."""
    model_flops: float
    """Of a mean step, on all GPUs."""
    pair_flops: float
    """What the pairs of a mean step cost as two whole sequences each."""
    num_steps: int
    peak: float
    """FLOP/s of all GPUs."""

    @property
    def verdict(self) -> Verdict:
        """TIGHT: it fits by less than the derivation may be wrong."""
        share = self.memory.total / self.room
        return "OK" if share <= TIGHT_ABOVE else "TIGHT" if share <= 1 else "OUT OF MEMORY"

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        return self.model_flops / self.step_seconds / self.peak

    @property
    def pair_equivalent_mfu(self) -> float:
        """As if two whole sequences had been computed."""
        return self.pair_flops / self.step_seconds / self.peak

    @property
    def gpu_hours(self) -> float:
        """Of an epoch."""
        return self.num_steps * self.step_seconds * self.layout.num_gpus / 3600

    @property
    def binds(self) -> str:
        """The part that takes most memory."""
        return max(self.memory.parts, key=lambda part: self.memory.parts[part])


def make_plan(base: StepShape, layout: Layout, data: Data, kind: GpuKind, kernel: str, efficiency: float) -> Plan:
    """Plan a layout.

    Args:
        base: what does not change with the layout.
        efficiency: share of the kernels' rates that a run reaches.

    Raises:
        UserError: the pairs of a batch cannot be dealt out to the data-parallel ranks.
    """
    shape = apply(base, layout)
    batches = _batch_plan(data, shape.options, layout.data)
    num_microbatches = batches.num_microbatches(data.num_dealt)
    largest = batches.largest_microbatch(num_microbatches, data.num_dealt)
    shape = replace(shape, num_microbatches=num_microbatches, trees=data.trees.of_pairs(largest))
    rates = Rates(shape=shape, kind=kind, kernel=kernel, efficiency=efficiency)
    lengths, steps = data.trees.lengths_T3, data.num_different / data.global_batch_size
    offloaded = optimizer_state(shape) if layout.offloads_optimizer else 0
    return Plan(
        layout=layout,
        memory=worst_stage(shape),
        room=kind.room,
        host_bytes=offloaded * min(layout.num_gpus, kind.gpus_per_node),
        seconds=_step_seconds(rates, data, batches, num_microbatches) | rates.end_of_step(),
        model_flops=model_flops(shape.options, lengths) / steps,
        pair_flops=pair_flops(shape.options, lengths) / steps,
        num_steps=data.num_steps,
        peak=kind.peak_tflops * 1e12 * layout.num_gpus,
    )


def apply(base: StepShape, layout: Layout) -> StepShape:
    """The step with another layout."""
    sizes = replace(base.sizes, tensor=layout.tensor, pipeline=layout.pipeline, context=layout.context)
    return replace(
        base,
        sizes=sizes,
        data=layout.data,
        recompute=layout.recompute,
        offloads_optimizer=layout.offloads_optimizer,
        half_gradients=layout.half_gradients,
    )


def _batch_plan(data: Data, options: Mapping[str, Any], num_ranks: int) -> BatchPlan:
    stride = data.num_different // data.num_dealt

    def pair_of_sample(sample: int) -> int:
        step, place = divmod(sample, data.global_batch_size)
        return (step * stride + place) % data.num_different

    return BatchPlan(
        pair_of_sample=pair_of_sample,
        tokens=data.trees.tokens,
        work=data.trees.sum_by_pair(tree_flops(options, data.trees.lengths_T3)),
        global_batch_size=data.global_batch_size,
        num_ranks=num_ranks,
        max_tokens=data.max_tokens,
    )


def _step_seconds(rates: Rates, data: Data, batches: BatchPlan, num_microbatches: int) -> dict[str, float]:
    """Of a mean step: the data-parallel rank that has most, and a pipeline's bubble."""
    times = _pair_seconds(rates, data)
    total_P = np.sum(list(times.values()), axis=0)
    found = dict.fromkeys((*times, "pipeline bubble"), 0.0)
    for step in range(data.num_dealt):
        ranks = batches.pairs_of_step(step * data.global_batch_size, num_microbatches)
        busiest = max(ranks, key=lambda groups: sum(total_P[group].sum() for group in groups))
        for name, of_pairs in times.items():
            found[name] += sum(of_pairs[group].sum() for group in busiest) / data.num_dealt
        longest = max(float(total_P[group].sum()) for group in busiest)
        found["pipeline bubble"] += (rates.shape.sizes.pipeline - 1) * longest / data.num_dealt
    return {name: float(seconds) for name, seconds in found.items()}


def _pair_seconds(rates: Rates, data: Data) -> dict[str, FloatArray]:
    trees = data.trees
    times = rates.seconds(tree_work(rates.shape.options, trees.lengths_T3, data.all_rows))
    times |= rates.exchange_seconds(trees.lengths_T3.sum(1).astype(np.float64), times["attention"])
    return {name: trees.sum_by_pair(of_trees) for name, of_trees in times.items()}
