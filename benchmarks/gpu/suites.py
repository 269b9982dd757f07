"""The measurements of the suite, and what the page says of their results (benchmarks/results/gpu.json)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import GOALS, Goal
from benchmarks.origin import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
WHOLE = "whole"
"""The outcome of a measurement that ran to its end."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A row of the suite."""

    name: str
    seconds: int
    """What it may take."""
    measure: str
    """Its name in one.py."""
    by_default: bool = True


SUITES = {
    1: (
        Measurement("sharing", 270, "sharing"),
        Measurement("layer", 60, "layer"),
        Measurement("head", 40, "head"),
        Measurement("kernels", 90, "kernels"),
        Measurement("mistral-7b", 580, "mistral-7b", by_default=False),
        Measurement("peers", 400, "peers", by_default=False),
    ),
    8: (
        Measurement("sharing on 8", 200, "sharing"),
        Measurement("exchanges", 90, "exchanges"),
    ),
}


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All measurements; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def goals_table(results: list[dict[str, Any]]) -> str:
    """Every goal with what was measured, as Markdown; "not run" where nothing was."""
    lines = ["| measurement | goal | measured | GPU |", "|---|---|---|---|"]
    for measurements in SUITES.values():
        for one in measurements:
            found = [result for result in results if result["name"] == one.name] or [None]
            lines += [_row(one, goal, result) for result in found for goal in GOALS[one.name]]
    return "\n".join(lines) + "\n"


def _row(one: Measurement, goal: Goal, result: dict[str, Any] | None) -> str:
    measured, where = "not run", "-"
    if result is not None:
        where = f"{result['machine']['gpu']}, {result['commit']}"
        judged = {verdict["what"]: verdict for verdict in result["verdicts"]}.get(goal.what)
        measured = result["outcome"] if judged is None else f"{judged['number']:.3g}"
        if judged is not None and not judged["reached"]:
            measured = f"**{measured}, not reached**"
    return f"| {one.name} | {goal.what}: {goal.bound} | {measured} | {where} |"
