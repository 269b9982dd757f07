"""Training with a clock on every tensor operator of the last steps; benchmarks/stages.py starts it on every rank.

    torchrun ... -m benchmarks.stage_rank RESULT WARM SEEN <options of megatron_longpo.train>

The first WARM steps are not counted, of the next SEEN every operator is. Then the rank measures what this machine can
do while all ranks do it: a large matrix product, and a copy of more than any cache holds. RESULT.RANK.json gets it all.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.operators import Operators
from megatron_longpo import run_errors, step, train
from megatron_longpo.megatron_hooks import replace
from megatron_longpo.model import branches, logprob, trunk
from megatron_longpo.step_clock import StepClock

MATMUL = 2048
"""Rows and columns."""
COPY_BYTES = 2**28


class Recorder:
    """What a rank saw."""

    def __init__(self, result: Path, warm: int, seen: int) -> None:
        self._result, self._warm, self._last = result, warm, warm + seen
        self._operators = Operators()
        self._num_steps = 0
        self._waits = {"communication": 0.0, "data": 0.0}
        self.steps: list[dict[str, Any]] = []

    def install(self) -> None:
        """Put labels around the parts of a step, clocks around what waits, and this recorder around the step."""
        from megatron.training import training

        label = self._operators.labelled
        for module, name in ((trunk, "trunk attention"), (branches, "branch attention")):
            for function in ("attend", "attend_backward"):
                replace(module, function, label(name, getattr(module, function)))
        replace(trunk, "merge_into", label("trunk attention", trunk.merge_into))
        replace(branches, "merge", label("branch attention", branches.merge))
        for function in ("forward", "backward"):
            named = label("log-prob head", getattr(logprob._TokenLogprobs, function))
            replace(logprob._TokenLogprobs, function, staticmethod(named))
        replace(step, "loss_function", label("loss", step.loss_function))
        replace(dist.Work, "wait", self._clocked("communication", dist.Work.wait))
        waiting = StepClock.waiting
        replace(StepClock, "waiting", lambda clock, batches: self._clocked_batches(waiting(clock, batches)))
        replace(training, "train_step", self._around(training.train_step))

    def _clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._waits[name] += time.perf_counter() - began

        return call

    def _clocked_batches(self, batches: Any) -> Any:
        pull = self._clocked("data", next)
        while (batch := pull(batches, None)) is not None:
            yield batch

    def _around(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._num_steps += 1
            if self._num_steps <= self._warm:
                return train_step(*args, **kwargs)
            found = self._see(train_step, list(args), kwargs)
            if self._num_steps == self._last:
                self._write()
            return found

        return run

    def _see(self, train_step: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        args[6] = self._operators.labelled("model", args[6])  # the schedule: forward, backward, sums over ranks
        self._operators.seen.clear()
        self._operators.own_seconds = 0.0
        self._waits = dict.fromkeys(self._waits, 0.0)
        began = time.perf_counter()
        with self._operators, self._operators.label("optimizer"):
            found = train_step(*args, **kwargs)
        seconds = time.perf_counter() - began - self._operators.own_seconds
        self.steps.append({"seconds": seconds, "waits": self._waits, "rows": summed(self._operators)})
        return found

    def _write(self) -> None:
        attainable = {"flops": matmul_rate(), "bytes": copy_rate()}
        found = {"steps": self.steps, "attainable": attainable}
        rank = dist.get_rank()
        self._result.with_suffix(f".{rank}.json").write_text(json.dumps(found))


def summed(operators: Operators) -> list[dict[str, Any]]:
    """Operators of one name, label and pass as one row, those of small tensors apart."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in operators.seen:
        key = (one.name, one.label, one.is_backward, one.num_bytes < SMALL_BYTES)
        names = ("operator", "label", "is_backward", "is_small")
        row = rows.setdefault(
            key, dict(zip(names, key, strict=True)) | {"calls": 0, "flops": 0, "bytes": 0, "seconds": 0.0}
        )
        row["calls"] += 1
        row["flops"] += one.flops
        row["bytes"] += one.num_bytes
        row["seconds"] += one.seconds
    return list(rows.values())


SMALL_BYTES = 2**16
"""What an operator moves at the most whose call takes longer than its work."""


def matmul_rate() -> float:
    """FLOPs a second of a large square fp32 product, the best of ten."""
    left, right = torch.randn(2, MATMUL, MATMUL)
    return 2 * MATMUL**3 / least_seconds(lambda: left @ right)


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy, the best of ten."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / least_seconds(lambda: target.copy_(source))


def least_seconds(work: Callable[[], object]) -> float:
    """Of ten runs, which all ranks begin together."""
    found: list[float] = []
    for _ in range(10):
        dist.barrier()
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    result, *counts = sys.argv[1:4]
    del sys.argv[1:4]
    Recorder(Path(result), *map(int, counts)).install()
    run_errors.leave(train.main())
