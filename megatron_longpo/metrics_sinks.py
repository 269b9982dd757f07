"""Where the numbers of a step go: metrics files, TensorBoard, W&B and the log, all the same under the same names.

Megatron would send a part of them to TensorBoard and W&B itself, by names of its own. Its writers stand behind those
of this file, which leave that part out and pass everything else on.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, TextIO

from megatron_longpo.metrics import numbers
from megatron_longpo.step_metrics import TOKEN_KINDS, name_of_tokens
from megatron_longpo.strict_json import is_object

VALIDATION = " validation"

NAMES = (
    "loss",
    "nll",
    "preference_loss",
    "constraint",
    "margin",
    "accuracy",
    "policy_chosen_logp",
    "policy_rejected_logp",
    "policy_long_chosen_logp",
    "reference_chosen_logp",
    "reference_rejected_logp",
    "reference_long_chosen_logp",
    "chosen_gap",
    "rejected_gap",
    "long_short_gap",
)
"""Means over the pairs of the global batch, as the step reports them and Megatron reduces them. What an objective does
not have is left out."""

_OURS = {*NAMES, *map(name_of_tokens, TOKEN_KINDS), "learning-rate", "batch-size", "grad-norm", "samples vs steps"}


def is_ours(tag: str) -> bool:
    """Megatron's tag is of a number that stands in the metrics file, by another name or in other units."""
    return tag.removesuffix(" vs samples").removesuffix(VALIDATION) in _OURS


class Sinks:
    """All that a line is written to."""

    def __init__(self, files: Sequence[TextIO], tensorboard: Any | None, wandb: Any | None) -> None:
        """Args:
        files: to append to (metrics_file.py).
        tensorboard: the SummaryWriter, if any; it keeps single precision.
        wandb: the module, if it was started.
        """
        self._files, self._tensorboard, self._wandb = files, tensorboard, wandb

    def write(self, line: dict[str, Any]) -> None:
        """Write the line everywhere."""
        line = _finite(line)
        for file in self._files:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
        step = line["step"]
        named = {f"{line['split']}/{path}": value for path, value in numbers(line).items()}
        if self._tensorboard:
            for name, value in named.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()  # nobody does after the last evaluation
        if self._wandb:
            self._wandb.log(named, step)
        print(" | ".join((f" metrics of step {step}", *(f"{name} {value!r}" for name, value in named.items()))))


class OtherScalars:
    """Stands in for the wandb module where Megatron logs to it."""

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wandb, name)

    def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        """Log what is not ours."""
        others = {name: value for name, value in values.items() if not is_ours(name)}
        if others:
            self._wandb.log(others, step, **rest)


def _finite(value: Any) -> Any:
    """The value with null for what is not finite: JSON has no NaN."""
    if is_object(value):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
