"""How the ranks of a run are divided among the parallel axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """Ranks along each axis that share one pair, and how the context-parallel ones exchange it."""

    tensor: int
    pipeline: int
    context: int
    cp_comm_type: Sequence[str]
    """One name for all layers, or one for each."""
    hierarchical: Sequence[int] | None
    """The two factors of ``context`` for ``a2a+p2p``."""

    @classmethod
    def of(cls, options: Any) -> Self:
        """Take them from parsed options by Megatron's names."""
        return cls(
            tensor=options.tensor_model_parallel_size,
            pipeline=options.pipeline_model_parallel_size,
            context=options.context_parallel_size,
            cp_comm_type=options.cp_comm_type,
            hierarchical=options.hierarchical_context_parallel_sizes,
        )

    @property
    def together(self) -> int:
        """Ranks that share one pair."""
        return self.tensor * self.pipeline * self.context
