"""No NaN and no infinity becomes a checkpoint, whatever Megatron's own checks are told.

Megatron's rerun machine validates no result of a run's first iteration (rerun_state_machine.py, validate_result), and
none with ``--no-check-for-nan-in-loss-and-grad``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor

from megatron_longpo.errors import UserError
from megatron_longpo.step_metrics import BREAKDOWNS


class StepLosses:
    """Looks at the losses of a step's pairs when all its micro-batches have run; at each the host would wait."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def add(self, losses_P: Tensor) -> None:
        """Keep the losses of a micro-batch's pairs."""
        self._losses.append(losses_P.detach())

    def after(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        """``schedule`` (megatron/core/pipeline_parallel/schedules.py), and then the check."""
        return partial(self._run, schedule)

    def _run(self, schedule: Callable[..., Any], **arguments: Any) -> Any:
        self._losses = []
        try:
            result = schedule(**arguments)
        except RuntimeError:  # such as Megatron's of a gradient (distributed/param_and_grad_buffer.py, check_grads)
            self._check()  # a loss is its cause
            raise
        self._check()
        return result

    def _check(self) -> None:
        """Megatron's own check, as its pretrain_gpt.py applies it: a bad loss is tried again, then stops the run."""
        if self._losses:
            get_rerun_state_machine().validate_result(
                result=torch.cat(self._losses).sum(),
                rejection_func=lambda loss: not torch.isfinite(loss),
                message="found NaN or infinity in the loss of a pair",
                tolerance=0.0,
                fatal=True,
            )


def check_step(step: int, means: dict[str, Any], grad_norm: float | None, size: float = 0.0) -> float:
    """Refuse the step, on all ranks, if one of them has a mean or a gradient norm that is not finite.

    Args:
        means: by name; those by turn and by length may be NaN, where the step has none of the kind.
        size: any number of this rank that is not negative.

    Returns:
        The largest ``size`` of all ranks: it travels with the answer, and the host waits once for both.
    """
    values = {name: float(value) for name, value in means.items() if name.split("/")[0] not in BREAKDOWNS}
    values |= {} if grad_norm is None else {"gradient norm": float(grad_norm)}
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    any_bad, largest = _largest(bool(bad), size)
    if any_bad:
        raise UserError(
            f"step {step} is not finite ({', '.join(bad) or 'on another rank'}) and is not saved; lower --lr, or check "
            "the reference and the coefficients"
        )
    return largest


def check_weights(step: int, chunks: Any) -> None:
    """Refuse to save, on all ranks, if a weight of one of them is not finite."""
    named = (item for chunk in chunks for item in chunk.named_parameters())
    bad = next((name for name, weight in named if not torch.isfinite(weight).all()), None)
    if _largest(bad is not None)[0]:
        raise UserError(f"step {step}: {bad or 'a weight of another rank'} is not finite, nothing is saved; lower --lr")


def _largest(*numbers: float) -> list[float]:
    """Of each number the largest over all ranks."""
    found = torch.tensor(numbers, dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()
