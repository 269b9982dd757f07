"""One JSON line a step: the numbers that Megatron reports, in full precision.

Megatron hands every number of a step to its TensorBoard writer (megatron/training/training.py, ``training_log`` and
``evaluate_and_print_results``). MetricsWriter stands there, passes everything on to the real writer if there is one,
and writes a line when a step or an evaluation is complete. It also prints one, because Megatron's own log line leaves
out every negative number.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from megatron_longpo.step_metrics import TOKEN_KINDS, Breakdowns, name_of_tokens

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


class MetricsWriter:
    """Stands in for a SummaryWriter on the last rank."""

    def __init__(
        self, paths: Sequence[Path], tensorboard: Any | None, clock: Callable[[], float], resume_step: int
    ) -> None:
        """Args:
        paths: files to append to; with none it only prints.
        tensorboard: the SummaryWriter to pass on to, if any.
        clock: seconds spent in training steps so far, without evaluation and saving.
        resume_step: the step that training goes on from; later lines of the files are from a run that died.
        """
        self._tensorboard, self._clock = tensorboard, clock
        self._files = [_open_at(path, resume_step) for path in paths]
        self._values: dict[str, float] = {}
        self._breakdowns: Breakdowns = {}
        self._seconds = clock()
        self._evaluated = -1

    def __getattr__(self, name: str) -> Any:
        """Everything that is not a scalar goes to TensorBoard, or nowhere."""
        return getattr(self._tensorboard, name) if self._tensorboard else lambda *_, **__: None

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
            file.write(json.dumps(line) + "\n")
            file.flush()
        if self._tensorboard:
            suffix = VALIDATION if line["split"] == "valid" else ""
            for kind, parts in self._breakdowns.items():
                for part, values in parts.items():
                    for name, value in values.items():
                        self._tensorboard.add_scalar(f"{kind}/{part}/{name}{suffix}", value, line["step"])
        shown = " | ".join(f"{name} {line[name]:.6g}" for name in NAMES if name in line)
        print(f" {line['split']} step {line['step']} | {shown}", flush=True)
        self._values.clear()
        self._breakdowns = {}


def _open_at(path: Path, step: int) -> TextIO:
    """Open for appending after dropping the lines of steps beyond ``step``, and a line cut short by a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(path)
    return path.open("a")
