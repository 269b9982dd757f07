"""What the training program reads of its own options, validated."""

from dataclasses import dataclass
from pathlib import Path

from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths
from megatron_longpo.model.build import ModelShape
from megatron_longpo.reference.options import References
from megatron_longpo.step_settings import StepSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPOSettings:
    """Our own options, validated."""

    reader: PairReader
    reference: References
    trees: TreeLengths
    """What the objective reads of the policy, for every pair."""
    order: PairOrder
    plan: BatchPlan
    plan_text: str
    """What a step is."""
    held_out: range
    """Pairs of the validation part."""
    shape: ModelShape
    step: StepSettings
    rmsprop_alpha: float | None
    """None: Megatron's own optimizer."""
    saves: Path | None
    """Folder of the checkpoints that training saves; None if it saves none, or takes no step."""
    metrics: Path | None
    """File of --longpo-metrics."""
    source: Path
    """Folder of the checkpoint that gave the model's shape."""
