"""What a step needs to know of the run."""

from dataclasses import dataclass

from megatron_longpo.model.targets import NllTokens
from megatron_longpo.objective.objectives import Objective
from megatron_longpo.objective.preferences import Coefficients


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step needs to know; nothing here changes during a run."""

    vocab_size: int
    """Tokens of the real vocabulary."""
    sequence_multiple: int
    """A rank's tokens of a micro-batch are padded to a multiple of this: the tensor-parallel size under sequence
    parallelism, else 1."""
    trunk_multiple: int = 1
    """A trunk is padded to a multiple of this."""
    objective: Objective
    coefficients: Coefficients
    keep_attention: bool = False
    """Full recomputation takes attention's output from the first forward pass."""
    nll_tokens: NllTokens
    """Which tokens the NLL counts."""
    max_turns: int
    """Most turns that a pair of the dataset has: how many there are metrics for."""
    length_buckets: tuple[int, ...]
    """Upper bounds, in tokens of the long trunk, of the lengths there are metrics for."""
