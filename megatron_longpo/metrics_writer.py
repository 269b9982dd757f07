"""One JSON line a step: the numbers that Megatron reports, in full precision.

Megatron hands every number of a step to its TensorBoard writer (megatron/training/training.py, ``training_log`` and
``evaluate_and_print_results``). MetricsWriter stands there, passes everything on to the real writer if there is one,
and writes a line when a step or an evaluation is complete. It also prints one, with speed and time left; Megatron's own
log line leaves out every negative number.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TextIO

from megatron_longpo.console import say
from megatron_longpo.step_metrics import TOKEN_KINDS, Breakdowns, name_of_tokens
from megatron_longpo.strict_json import is_object

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
)
"""Means over the pairs of the global batch; log-probs and margin in nats, nll in nats per token (simpo's margin too;
orpo's is a difference of log odds). What an objective does not have is left out."""

VALIDATION = " validation"
_RECENT_STEPS = 20
"""What the time left is estimated from: lengths vary, and the first step is slow."""


class MetricsWriter:
    """Stands in for a SummaryWriter on the last rank."""

    def __init__(
        self,
        files: Sequence[TextIO],
        tensorboard: Any | None,
        wandb: Any | None,
        clock: Callable[[], float],
        num_steps: int,
    ) -> None:
        """Args:
        files: to append to (metrics_file.py); with none it only prints.
        tensorboard: the SummaryWriter to pass on to, if any.
        wandb: the module that Megatron logs its own numbers to, if any.
        clock: seconds spent in training steps so far, without evaluation and saving.
        num_steps: of the whole run.
        """
        self._files, self._tensorboard, self._wandb, self._clock = files, tensorboard, wandb, clock
        self._values: dict[str, float] = {}
        self._breakdowns: Breakdowns = {}
        self._seconds = clock()
        self._num_steps = num_steps
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._evaluated = -1

    def __getattr__(self, name: str) -> Any:
        """Everything that is not a scalar goes to TensorBoard, or nowhere."""
        return getattr(self._tensorboard, name) if self._tensorboard else _ignored

    def add_scalar(self, tag: str, value: Any, step: int, *rest: Any, **kwargs: Any) -> None:
        """Pass one number on and remember it; the last of an evaluation completes its line."""
        if self._tensorboard:
            self._tensorboard.add_scalar(tag, value, step, *rest, **kwargs)
        self._values[tag] = float(value)
        if tag == name_of_tokens(TOKEN_KINDS[-1]) + VALIDATION and step != self._evaluated:
            self._evaluated = step  # Megatron evaluates once more after the last step: the same weights and pairs
            self._write(self._validation_line(step))

    def end_step(self, step: int) -> None:
        """Complete the line of a training step, also of one that loss scaling skipped: that has no gradient norm."""
        if "batch-size" in self._values:
            self._write(self._training_line(step))

    def hold(self, breakdowns: Breakdowns) -> None:
        """Keep these for the next line."""
        self._breakdowns = breakdowns

    def _training_line(self, step: int) -> dict[str, Any]:
        now = self._clock()
        seconds, self._seconds = now - self._seconds, now
        num_pairs = round(self._values["batch-size"])
        return {
            "step": step,
            "split": "train",
            **self._means(""),
            **self._breakdowns,
            "grad_norm": self._values.get("grad-norm"),
            "learning_rate": self._values["learning-rate"],
            "num_pairs": num_pairs,
            "num_tokens": {kind: round(self._values[name_of_tokens(kind)] * num_pairs) for kind in TOKEN_KINDS},
            "seconds": seconds,
        }

    def _validation_line(self, step: int) -> dict[str, Any]:
        return {"step": step, "split": "valid", **self._means(VALIDATION), **self._breakdowns}

    def _means(self, suffix: str) -> dict[str, float]:
        return {name: self._values[name + suffix] for name in NAMES if name + suffix in self._values}

    def _write(self, line: dict[str, Any]) -> None:
        for file in self._files:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            file.flush()
        suffix = VALIDATION if line["split"] == "valid" else ""
        broken_down = {
            f"{kind}/{part}/{name}{suffix}": value
            for kind, parts in self._breakdowns.items()
            for part, values in parts.items()
            for name, value in values.items()
        }
        if self._tensorboard:
            for name, value in broken_down.items():
                self._tensorboard.add_scalar(name, value, line["step"])
        if self._wandb and broken_down:
            self._wandb.log(broken_down, line["step"])
        say(self._shown(line))
        self._values.clear()
        self._breakdowns = {}

    def _shown(self, line: dict[str, Any]) -> str:
        """The line of a step on the terminal."""
        parts = [f"{name.replace('_', ' ')} {line[name]:.5g}" for name in NAMES if name in line and "logp" not in name]
        if line["split"] == "valid":
            return " | ".join((f"held out, step {line['step']}", *parts))
        norm = line["grad_norm"]
        tokens = sum(number for kind, number in line["num_tokens"].items() if kind != "padding")
        self._recent.append(line["seconds"])
        left = round((self._num_steps - line["step"]) * sum(self._recent) / len(self._recent))
        parts += [
            f"grad norm {norm:.4g}" if norm is not None else "skipped: the gradient overflowed",
            f"lr {line['learning_rate']:.4g}",
            f"{tokens / line['seconds']:,.0f} tokens/s",
            f"{line['seconds']:.3g} s, {timedelta(seconds=left)} left",
        ]
        return " | ".join((f"step {line['step']}/{self._num_steps}", *parts))


def _ignored(*_: Any, **__: Any) -> None:
    pass


def _finite(value: Any) -> Any:
    """The value with null for what is not finite: JSON has no NaN."""
    if is_object(value):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
