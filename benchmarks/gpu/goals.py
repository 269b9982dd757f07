"""What each measurement is held against: the limits are those of the kernels, not of another trainer.

A goal gives its number from the rows that were measured, and what the number must reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A number with a bound."""

    what: str
    number: Callable[[Sequence[Row], float], float]
    """From the rows, and the GPU's peak, FLOP/s in bf16."""
    least: float | None = None
    most: float | None = None

    @property
    def bound(self) -> str:
        """In words."""
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    def verdict(self, rows: Sequence[Row], peak: float) -> Row:
        """The number, its bound, and whether it is reached."""
        number = self.number(rows, peak)
        reached = (self.least is None or number >= self.least) and (self.most is None or number <= self.most)
        return {"what": self.what, "number": number, "least": self.least, "most": self.most, "reached": reached}


def seconds(step: Row) -> float:
    """Median."""
    return median(step["seconds"])


def gain(row: Row) -> float:
    """Two passes over the shared one, both with full recomputation."""
    return seconds(row["steps"]["two passes"]) / seconds(row["steps"]["shared"])


def _gain_of_limit(rows: Sequence[Row], _: float) -> float:
    return min(gain(row) * row["flops"]["shared"] / row["flops"]["separate"] for row in rows)


def _kept(rows: Sequence[Row], _: float) -> float:
    steps = rows[-1]["steps"]
    return seconds(steps["shared"]) / seconds(steps["shared, attention kept"])


def mfu(of: str, ranks: int = 1) -> Callable[[Sequence[Row], float], float]:
    """Of the best step that keeps attention: model FLOPs, causal attention by half; ``of`` "shared" or "separate"."""
    return lambda rows, peak: max(
        row["flops"][of] / seconds(row["steps"]["shared, attention kept"]) / peak / ranks for row in rows
    )


def _layer_mfu(rows: Sequence[Row], peak: float) -> float:
    one, two = rows
    return (two["flops"]["shared"] - one["flops"]["shared"]) / (seconds(two) - seconds(one)) / peak


def _auto(rows: Sequence[Row], _: float) -> float:
    return seconds(rows[0]) / min(seconds(row) for row in rows)


def _exchanges(rows: Sequence[Row], peak: float) -> float:
    return max(row["flops"]["shared"] / seconds(row) / peak / 8 for row in rows)


SHARING = (
    Goal("gain of the shared pass, of what its FLOPs allow, at the least", _gain_of_limit, least=0.95),
    Goal("full recomputation over attention kept, at the longest", _kept, least=1.15),
)
"""The FLOPs allow 1.95 at 128K with branches of 2K. At the rates of FlashAttention-3, 0.20 of a step is attention
computed again."""
GOALS = {
    "sharing": (
        *SHARING,
        Goal("true MFU of a step", mfu("shared"), least=0.42),
        Goal("pair-equivalent MFU of a step", mfu("separate"), least=0.80),
    ),
    "layer": (Goal("true MFU of a layer, the difference of two steps", _layer_mfu, least=0.45),),
    "head": (Goal("GiB beyond inputs and gradients", lambda rows, _: rows[0]["gib_beyond"], most=1.0),),
    "kernels": (Goal("the chosen kernel's step over the fastest one", _auto, most=1.05),),
    "exchanges": (Goal("true MFU of 8 GPUs, the best exchange", _exchanges, least=0.38),),
    "mistral-7b": (
        Goal("GiB at the peak", lambda rows, _: max(row.get("peak_memory_gib", 0.0) for row in rows), most=136.0),
        Goal("seconds of the last step", lambda rows, _: rows[-2]["seconds"], most=62.0),
    ),
    "peers": (
        Goal("times faster than the released form", lambda rows, _: min(row["times"] for row in rows), least=3.0),
        Goal("of its memory", lambda rows, _: max(row["memory"] for row in rows), most=0.5),
    ),
    "sharing on 8": (*SHARING, Goal("true MFU of 8 GPUs", mfu("shared", 8), least=0.38)),
}
"""Of real trainers the best reach 80 to 90% of what the kernels allow, which at 128K is an MFU of 0.50 with attention
kept (forward at 620 and backward at 550 TFLOP/s, matrix products at 650). The step of all of Mistral-7B is planned as
118 GiB and 52 seconds (`megatron-longpo plan`)."""
