"""step_clock.py: each second of a step is in one phase, and none of an evaluation is."""

from collections.abc import Iterator
from typing import Any

from megatron_longpo.step_clock import StepClock


class Time:
    """Passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batches(time: Time) -> Iterator[int]:
    for number in range(6):
        time.now += 2.0
        yield number


def test_phases() -> None:
    """A step of two micro-batches, each waited for 2 s and computed in 5 s, and an optimizer of 3 s."""
    time = Time()
    clock = StepClock(time)
    data = clock.waiting(batches(time))

    def schedule(*, data_iterator: Iterator[int], forward_only: bool, seconds: float) -> list[int]:
        seen: list[int] = []
        for _ in range(2):
            seen.append(next(data_iterator))
            time.now += seconds
        return seen

    timed: Any = clock.around(schedule)
    for step in range(2):
        assert timed(data_iterator=data, forward_only=False, seconds=5.0) == [2 * step, 2 * step + 1]
        time.now += 3.0
        clock.end_optimizer()
        time.now += 100.0
        assert timed(data_iterator=iter((7, 8)), forward_only=True, seconds=50.0) == [7, 8]
        assert clock.take() == {"data": 4.0, "forward_backward": 10.0, "optimizer": 3.0}
    assert list(data) == [4, 5]
