"""A micro-batch as the step takes it: made in the loader's processes, and in pinned memory where there is CUDA.

So its copy to the device waits for nothing. What the host must know of it, lengths and counts, never leaves the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.data.trees import TreeKind
from megatron_longpo.model.forward import PackInput, TreeInput, pack, tree_input
from megatron_longpo.step_settings import StepSettings

Sample = Mapping[str, Any]
"""What data/dataset.py yields for a pair, as tensors."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One pair or a few, and what a context-parallel rank holds of their trees."""

    samples: Sequence[Sample]
    packed: PackInput

    def pin_memory(self) -> "MicroBatch":
        """The same in pinned memory; torch's DataLoader calls this (torch/utils/data/_utils/pin_memory.py)."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str | int) -> "MicroBatch":
        """Copy what is computed with: the trees, and of each pair its weight and what a reference gave."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, do: Callable[[Tensor], Tensor]) -> "MicroBatch":
        samples = [
            {name: do(value) if name.startswith(("weight", "reference_")) else value for name, value in sample.items()}
            for sample in self.samples
        ]
        return replace(self, samples=samples, packed=self.packed.each(do))


def micro_batch(
    samples: Sequence[Mapping[str, Any]], *, settings: StepSettings, cp_rank: int, cp_size: int
) -> MicroBatch:
    """Make a micro-batch of what data/dataset.py yields.

    Args:
        cp_rank, cp_size: this rank among those that share the pairs.
    """
    tensors = [_as_tensors(sample) for sample in samples]
    trees = [tree for sample in tensors for tree in pair_trees(sample, settings, cp_rank, cp_size)]
    return MicroBatch(tensors, pack(trees, settings.sequence_multiple))


def pair_trees(sample: Sample, settings: StepSettings, cp_rank: int, cp_size: int) -> list[TreeInput]:
    """Make the trees of a pair that the objective reads, in its order: of short contexts one a turn."""
    return [
        tree_input(
            conversation,
            kind.answers,
            nll_tokens=settings.nll_tokens if kind.context == settings.objective.nll_context else None,
            cp_rank=cp_rank,
            cp_size=cp_size,
            trunk_multiple=settings.trunk_multiple,
        )
        for kind in settings.objective.reads
        for conversation in conversations(sample, kind)
    ]


def conversations(sample: Sample, kind: TreeKind) -> Sequence[Mapping[str, Tensor]]:
    """The conversations of a pair on that context: one with all turns, or one a turn."""
    return [sample["long"]] if kind.context == "long" else sample["short"]


def _as_tensors(value: Any) -> Any:
    """Lists and dicts as they are, arrays as tensors."""
    if isinstance(value, list):
        return [_as_tensors(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _as_tensors(one) for name, one in value.items()}
    return torch.from_numpy(value)
