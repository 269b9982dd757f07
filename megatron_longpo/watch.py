"""What is watched of a run: from the hooks around Megatron's loop to the writer on the last rank."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.training import get_timers, get_wandb_writer
from numpy.typing import NDArray

from megatron_longpo import megatron_hooks, platform
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.hf.training_record import METRICS_FILE
from megatron_longpo.metrics_file import open_metrics
from megatron_longpo.metrics_sinks import OtherScalars, Sinks
from megatron_longpo.metrics_writer import MetricsWriter
from megatron_longpo.model.flops import separate_flops, squared_lengths, tree_flops
from megatron_longpo.non_finite import StepLosses, check_step
from megatron_longpo.step_clock import StepClock
from megatron_longpo.step_metrics import take_breakdowns
from megatron_longpo.throughput import Throughput, peak_tflops


class Watch:
    """Watches one run."""

    def __init__(self, settings: LongPOSettings, args: argparse.Namespace, losses: StepLosses) -> None:
        self._settings, self._args, self._losses = settings, args, losses
        self._writer: MetricsWriter | None = None
        """On the last rank, once the checkpoint is loaded."""
        self.phases = StepClock()

    def install_hooks(self) -> None:
        """Call after all hooks that wrap schedules: theirs are timed as well."""
        # What is reported by turn and by length would fill a screen a step in Megatron's log.
        megatron_hooks.around_training_log(self._hold, self._end_step)
        megatron_hooks.after_evaluation(self._hold)
        megatron_hooks.after_train_step(self._after_train_step)
        megatron_hooks.wrap_schedules(self.phases.around)
        # Megatron's FLOPs and throughput would count --seq-length for each pair.
        trees = self._settings.trees
        squares_P = trees.sum_by_pair(squared_lengths(trees.lengths_T3))
        megatron_hooks.count_tokens_of_a_step(self._of_the_last_step(trees.tokens, squares_P))

    def install_writer(self, resume_step: int) -> None:
        """Put the writers in the place of Megatron's on the last rank, where it logs."""
        args = self._args
        if args.rank != args.world_size - 1 or self._writer:  # Megatron asks once for every virtual pipeline stage
            return

        def around(tensorboard: Any | None) -> MetricsWriter:
            beside = self._settings.saves and self._settings.saves / METRICS_FILE
            files = open_metrics(beside, self._settings.metrics, resume_step, args.skip_train)
            objective = self._settings.step.objective
            self._writer = MetricsWriter(
                Sinks(files, tensorboard, get_wandb_writer()),
                tensorboard,
                seconds=_training_seconds,
                phases=self.phases,
                throughput=self._throughput(),
                beta=self._settings.step.coefficients.beta if objective.reference else None,
                first_step=resume_step,
                num_steps=args.train_iters,
            )
            return self._writer

        megatron_hooks.put_writers(around, OtherScalars)

    def _throughput(self) -> Throughput:
        trees, model = self._settings.trees, vars(self._args)
        true_P, separate_P = (
            3 * trees.sum_by_pair(count(model, trees.lengths_T3)) for count in (tree_flops, separate_flops)
        )
        return Throughput(self._of_the_last_step(true_P, separate_P), self._args.world_size, _peak(self._args))

    def _of_the_last_step(self, first_P: NDArray[Any], second_P: NDArray[Any]) -> Callable[[], tuple[float, float]]:
        """Add two numbers of each pair up over the pairs of a step."""

        def added() -> tuple[float, float]:
            last = self._args.consumed_train_samples
            samples = range(last - self._args.global_batch_size, last)
            pairs = [self._settings.order(sample) for sample in samples]
            return float(first_P[pairs].sum()), float(second_P[pairs].sum())

        return added

    def _after_train_step(self, means: dict[str, Any], norm: float | None) -> None:
        seen = {} if self._losses.skipped else means
        peak = check_step(self._args.curr_iteration + 1, seen, norm, platform.peak_memory())
        self.phases.end_optimizer()
        if self._writer:
            self._writer.hold_peak_memory(peak)

    def _hold(self, reported: dict[str, Any]) -> None:
        breakdowns = take_breakdowns(reported)
        if self._writer:
            self._writer.hold(breakdowns)

    def _end_step(self, step: int) -> None:
        if self._writer:
            self._writer.end_step(step)


def _peak(args: argparse.Namespace) -> float | None:
    """TFLOP/s of a GPU at its best, as told or by its name; the names' are those of bf16 and fp16."""
    if args.longpo_peak_tflops or platform.is_cpu() or args.fp8 or not (args.bf16 or args.fp16):
        return args.longpo_peak_tflops
    return peak_tflops(torch.cuda.get_device_name())


def _training_seconds() -> float:
    """Seconds in training steps so far: Megatron stops this timer around evaluation and saving."""
    timer = get_timers()("interval-time", log_level=0)
    running = time.time() - timer._start_time if timer._started else 0.0
    return timer.active_time() + running
