"""The line of a step: the numbers that Megatron reports, in full precision, and what follows from them.

Megatron hands every number of a step to its TensorBoard writer (megatron/training/training.py, ``training_log`` and
``evaluate_and_print_results``). MetricsWriter stands there and makes a line when a step or an evaluation is complete,
which goes where metrics_sinks.py says. It also prints the most of it, with speed and time left.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from megatron_longpo.console import say
from megatron_longpo.metrics_sinks import NAMES, VALIDATION, Sinks, is_ours
from megatron_longpo.step_clock import StepClock
from megatron_longpo.step_metrics import TOKEN_KINDS, Breakdowns, name_of_tokens
from megatron_longpo.throughput import Throughput

_RECENT_STEPS = 20
"""What the time left is estimated from: lengths vary, and the first step is slow."""

_SHOWN = NAMES[: NAMES.index("policy_chosen_logp")]
"""On the terminal."""


class MetricsWriter:
    """Stands in for a SummaryWriter on the last rank."""

    def __init__(
        self,
        sinks: Sinks,
        tensorboard: Any | None,
        *,
        seconds: Callable[[], float],
        phases: StepClock,
        throughput: Throughput,
        beta: float | None,
        first_step: int,
        num_steps: int,
    ) -> None:
        """Args:
        sinks: what lines go to.
        tensorboard: the SummaryWriter to pass on to what is not ours, if any.
        seconds: spent in training steps so far, without evaluation and saving.
        phases: of this rank.
        beta: what a gap is multiplied by to be a reward; None where the objective has no reference.
        first_step: that training goes on from.
        num_steps: of the whole run.
        """
        self._sinks, self._tensorboard = sinks, tensorboard
        self._clock, self._phases, self._throughput = seconds, phases, throughput
        self._beta, self._first_step, self._num_steps = beta, first_step, num_steps
        self._values: dict[str, float] = {}
        self._breakdowns: Breakdowns = {}
        self._peak_memory = 0.0
        self._seconds = seconds()
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._evaluated = -1

    def __getattr__(self, name: str) -> Any:
        """Everything that is not a scalar goes to TensorBoard, or nowhere."""
        return getattr(self._tensorboard, name) if self._tensorboard else _ignored

    def add_scalar(self, tag: str, value: Any, step: int, *rest: Any, **kwargs: Any) -> None:
        """Remember a number of ours, pass on any other; the last of an evaluation completes its line."""
        if not is_ours(tag):
            if self._tensorboard:
                self._tensorboard.add_scalar(tag, value, step, *rest, **kwargs)
            return
        self._values[tag] = float(value)
        if tag == name_of_tokens(TOKEN_KINDS[-1]) + VALIDATION and step != self._evaluated:
            self._evaluated = step  # Megatron evaluates once more after the last step: the same weights and pairs
            self._write({"step": step, "split": "valid", **self._means(VALIDATION), **self._breakdowns})

    def end_step(self, step: int) -> None:
        """Complete the line of a training step, also of one that was left out: that has no gradient norm."""
        if "batch-size" in self._values:
            self._write(self._training_line(step))

    def hold(self, breakdowns: Breakdowns) -> None:
        """Keep these for the next line."""
        self._breakdowns = breakdowns

    def hold_peak_memory(self, num_bytes: float) -> None:
        """Keep the most that any rank held, for the next line of training."""
        self._peak_memory = num_bytes

    def _training_line(self, step: int) -> dict[str, Any]:
        now = self._clock()
        seconds, self._seconds = now - self._seconds, now
        phases = self._phases.take()
        num_pairs = round(self._values["batch-size"])
        num_tokens = {kind: round(self._values[name_of_tokens(kind)] * num_pairs) for kind in TOKEN_KINDS}
        return {
            "step": step,
            "split": "train",
            **self._means(""),
            **self._breakdowns,
            "grad_norm": self._values.get("grad-norm"),
            "learning_rate": self._values["learning-rate"],
            "num_pairs": num_pairs,
            "num_tokens": num_tokens,
            "seconds": seconds,
            "phase_seconds": phases | {"other": max(0.0, seconds - sum(phases.values()))},
            **self._throughput.of_step(num_tokens, seconds),
            "peak_memory_gib": self._peak_memory / 2**30,
            "resumed_from": self._first_step,
        }

    def _means(self, suffix: str) -> dict[str, float]:
        """What was reported, and the rewards, which are means over the pairs as well."""
        found = {name: self._values[name + suffix] for name in NAMES if name + suffix in self._values}
        if self._beta is not None and "margin" in found:
            rewarded = {"chosen_reward": "chosen_gap", "rejected_reward": "rejected_gap", "reward_margin": "margin"}
            found |= {reward: self._beta * found[gap] for reward, gap in rewarded.items() if gap in found}
        return found

    def _write(self, line: dict[str, Any]) -> None:
        self._sinks.write(line)
        say(self._shown(line))
        self._values.clear()
        self._breakdowns = {}

    def _shown(self, line: dict[str, Any]) -> str:
        """The line of a step on the terminal."""
        parts = [f"{name.replace('_', ' ')} {line[name]:.5g}" for name in _SHOWN if name in line]
        if line["split"] == "valid":
            return " | ".join((f"held out, step {line['step']}", *parts))
        norm, speed = line["grad_norm"], line["tokens_per_second"]
        self._recent.append(line["seconds"])
        left = round((self._num_steps - line["step"]) * sum(self._recent) / len(self._recent))
        parts += [
            f"grad norm {norm:.4g}" if norm is not None else "left out",
            f"lr {line['learning_rate']:.4g}",
            f"{speed['trunk'] + speed['branches']:,.0f} tokens/s",
            *([f"MFU {line['mfu']:.1%}"] if "mfu" in line else []),
            f"{line['peak_memory_gib']:.1f} GiB",
            f"{line['seconds']:.3g} s, {timedelta(seconds=left)} left",
        ]
        return " | ".join((f"step {line['step']}/{self._num_steps}", *parts))


def _ignored(*_: Any, **__: Any) -> None:
    pass
