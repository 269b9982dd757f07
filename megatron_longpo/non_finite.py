"""No NaN and no infinity becomes a checkpoint: a step with one stops the run, naming its pairs, or is left out.

Megatron's rerun machine is off by default: it validates no result of a run's first iteration (rerun_state_machine.py,
validate_result), and where a bad loss repeats itself it saves and ends with status 16, for another GPU to try again.
``--rerun-mode validate_results`` gives it the losses.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine
from torch import Tensor

from megatron_longpo.console import say
from megatron_longpo.errors import UserError
from megatron_longpo.step_metrics import BREAKDOWNS

ADVICE = "lower --lr, or check the reference and the coefficients"
_NAMED = 8
"""Pairs in a message; a step may have hundreds."""


class StepLosses:
    """Looks at the losses of a step's pairs when all its micro-batches have run; at each the host would wait.

    Args:
        name_pair: what the user knows a pair by, by its index in the dataset.
        step: the number of the step that runs.
        may_skip: so many steps of this start of the program are left out rather than stop it.
    """

    def __init__(self, name_pair: Callable[[int], str], step: Callable[[], int], may_skip: int) -> None:
        self._name_pair, self._step, self._may_skip = name_pair, step, may_skip
        self._losses: list[Tensor] = []
        self._pairs: list[int] = []
        self._bad: list[int] | None = None
        """Pairs of all ranks whose losses in this step are not finite; None: there are none."""
        self._num_skipped = 0
        self.skipped = False
        """The last step was left out."""

    def add(self, losses_P: Tensor, pairs: Iterable[int]) -> None:
        """Keep the losses of a micro-batch's pairs."""
        self._losses.append(losses_P.detach())
        self._pairs.extend(pairs)

    def after(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        """``schedule`` (megatron/core/pipeline_parallel/schedules.py), and then the check."""
        return partial(self._run, schedule)

    def _run(self, schedule: Callable[..., Any], **arguments: Any) -> Any:
        self._losses, self._pairs, self._bad, self.skipped = [], [], None, False
        where = "held-out pairs" if arguments["forward_only"] else f"step {self._step()}"
        try:
            result = schedule(**arguments)
        except RuntimeError:  # such as Megatron's of a gradient (distributed/param_and_grad_buffer.py, check_grads)
            if bad := self._bad_here():  # a loss is its cause; other ranks may stand in a collective and are not asked
                raise UserError(self._of_losses(where, bad)) from None
            raise
        if get_rerun_state_machine().mode is not RerunMode.DISABLED:
            self._let_megatron_check()
        elif _largest(bool(bad := self._bad_here()))[0]:
            self._bad = _of_all_ranks(bad)
            if arguments["forward_only"] or not self._may_skip:
                raise UserError(self._of_losses(where, self._bad))
        return result

    def _bad_here(self) -> list[int]:
        if not self._losses:
            return []
        finite_P = torch.isfinite(torch.cat(self._losses)).tolist()
        return [pair for pair, finite in zip(self._pairs, finite_P, strict=True) if not finite]

    def _let_megatron_check(self) -> None:
        """As its pretrain_gpt.py does: a bad loss is tried again, then stops the run."""
        if self._losses:
            get_rerun_state_machine().validate_result(
                result=torch.cat(self._losses).sum(),
                rejection_func=lambda loss: not torch.isfinite(loss),
                message="found NaN or infinity in the loss of a pair",
                tolerance=0.0,
                fatal=True,
            )

    def skips(self, optimizer: Any, overflowed: bool) -> bool:
        """Whether this step is left out, the same on all ranks; says so.

        Args:
            optimizer: Megatron's, with its gradients ready.
            overflowed: loss scaling leaves the step out anyway, and its gradients are not expected to be finite.

        Raises:
            UserError: that would be one more than may be left out.
        """
        where = f"step {self._step()}"
        if self._bad is not None:
            message = self._of_losses(where, self._bad)
        elif overflowed or math.isfinite(optimizer.get_grad_norm()):
            return overflowed
        else:
            pairs = self._named(_of_all_ranks(self._pairs))
            message = f"{where}: the gradient is not finite, the losses of its pairs are: {pairs}; {ADVICE}"
        if self._num_skipped == self._may_skip:
            raise UserError(f"{message}; {self._may_skip} steps were left out already, as many as --longpo-skip-steps")
        self._num_skipped += 1
        self.skipped = True
        if dist.get_rank() == 0:
            say(f"left out, {self._num_skipped} of at most {self._may_skip} steps: {message}")
        return True

    def _of_losses(self, where: str, pairs: Sequence[int]) -> str:
        return f"{where}: the loss of {self._named(pairs)} is not finite; {ADVICE}"

    def _named(self, pairs: Sequence[int]) -> str:
        named = ", ".join(map(self._name_pair, pairs[:_NAMED]))
        return named + (f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else "")


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
        raise UserError(f"step {step} is not finite ({', '.join(bad) or 'on another rank'}) and is not saved; {ADVICE}")
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


def _of_all_ranks(pairs: Sequence[int]) -> list[int]:
    """Those of each rank, once and in order."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, list(pairs))
    return sorted({pair for one in gathered for pair in one})
