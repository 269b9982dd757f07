"""The numbers a run ends with, for the report and the terminal: where the chunks went that were asked about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_longpo.generate.settings import FILTERS

WHOLE_CONTEXT = "control tokens"
"""The only filter that drops a long context before anything is asked about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row of the waterfall."""

    name: str
    count: int
    left: int
    """Chunks left after it."""
    is_drop: bool


def waterfall(counts: Mapping[str, Any]) -> list[Step]:
    """List the steps from the chunks that were asked about to the turns in the pairs, with every drop in its order.

    Args:
        counts: the manifest's (`merge.Tally`).

    The steps add up: ``left`` of the last is ``counts["turns"]``.
    """
    dropped = dict(counts["dropped"])
    dropped[WHOLE_CONTEXT] = dropped.get(WHOLE_CONTEXT, 0) - num_whole_contexts(counts)
    num_duplicates = dropped.pop("duplicate", 0)
    num_alone = counts["usable_turns"] - num_duplicates - counts["turns"]
    steps = [Step(name="chunks asked about", count=counts["asked"], left=counts["asked"], is_drop=False)]
    for name in FILTERS:
        _drop(steps, name, dropped.get(name, 0))
    _total(steps, "usable turns", counts["usable_turns"])
    _drop(steps, "duplicate of an earlier turn", num_duplicates)
    _drop(steps, "too few turns for a pair", num_alone)
    _total(steps, "turns in pairs", counts["turns"])
    return steps


def num_whole_contexts(counts: Mapping[str, Any]) -> int:
    """Long contexts that were left out before a chunk of theirs was asked about.

    They are counted as dropped but not as asked: every chunk asked about is dropped by one filter or a usable turn.
    """
    num_dropped = sum(count for name, count in counts["dropped"].items() if name != "duplicate")
    return counts["usable_turns"] + num_dropped - counts["asked"]


def drops(counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What was dropped and why, most first: filters, duplicates, and turns that were too few for a pair."""
    found = [(step.name, step.count) for step in waterfall(counts) if step.is_drop and step.count]
    return sorted(found, key=lambda item: -item[1])


def duration(seconds: float) -> str:
    """Like ``45 s``, ``12 min 05 s``, ``3 h 07 min``, ``2 d 04 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"


def _drop(steps: list[Step], name: str, count: int) -> None:
    steps.append(Step(name=name, count=count, left=steps[-1].left - count, is_drop=True))


def _total(steps: list[Step], name: str, count: int) -> None:
    assert steps[-1].left == count, f"{name}: {count} counted, {steps[-1].left} left"
    steps.append(Step(name=name, count=count, left=count, is_drop=False))
