"""Where the time of a step goes, by the host's clock, read only where the host waits for the device anyway.

After the schedule non_finite.py reads the losses, after the optimizer whether all ranks go on: by then the device has
done what stands before. Megatron's own timers (``--timing-log-level``) tell more and would wait more, at every one.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

PHASES = ("data", "forward_backward", "optimizer")
"""Waiting for micro-batches; the schedule, with gradients summed over ranks and an online reference; the optimizer."""


class StepClock:
    """Seconds of the phases of this rank's step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._schedule_ended = clock()
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same micro-batches; how long each was waited for is kept."""
        while True:
            started = self._clock()
            batch = next(batches, None)
            self._seconds["data"] += self._clock() - started
            if batch is None:
                return
            yield batch

    def around(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        """``schedule`` (megatron/core/pipeline_parallel/schedules.py), timed where it trains."""
        return partial(self._run, schedule)

    def _run(self, schedule: Callable[..., Any], **arguments: Any) -> Any:
        if arguments["forward_only"]:  # an evaluation
            return schedule(**arguments)
        started, waited = self._clock(), self._seconds["data"]
        result = schedule(**arguments)
        self._schedule_ended = self._clock()
        self._seconds["forward_backward"] += self._schedule_ended - started - (self._seconds["data"] - waited)
        return result

    def end_optimizer(self) -> None:
        """The optimizer has run since the schedule ended."""
        self._seconds["optimizer"] += self._clock() - self._schedule_ended

    def take(self) -> dict[str, float]:
        """Seconds by phase since this was last asked."""
        found = self._seconds
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return found
