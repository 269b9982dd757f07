"""Numbers with their standard errors, and means of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Place = tuple[str, int | None]
"""Task and length of a cell."""

_95_PERCENT = 1.959964
"""Standard errors on either side of a normal mean that hold 95% of it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of scores, in points of 100."""

    value: float
    standard_error: float | None
    """None where a single sample does not tell it."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, normal; None without a standard error."""
        if self.standard_error is None:
            return None
        return self.value - _95_PERCENT * self.standard_error, self.value + _95_PERCENT * self.standard_error

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def ascending(lengths: Iterable[int | None]) -> list[int | None]:
    """Each length once; None, of suites without lengths, is the only one."""
    return sorted(set(lengths), key=lambda length: length or 0)


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent estimates; None of none."""
    if not estimates:
        return None
    errors = [one.standard_error for one in estimates if one.standard_error is not None]
    is_known = len(errors) == len(estimates)
    error = math.sqrt(sum(error**2 for error in errors)) / len(errors) if is_known else None
    return Estimate(fmean(one.value for one in estimates), error)


def mean_over(
    estimates: Mapping[Place, Estimate], tasks: Sequence[str], lengths: Sequence[int | None]
) -> Estimate | None:
    """The mean over tasks at each length, then over the lengths; over what is there. None if nothing is."""
    at_lengths = [
        mean_of([estimates[task, length] for task in tasks if (task, length) in estimates]) for length in lengths
    ]
    return mean_of([one for one in at_lengths if one is not None])
