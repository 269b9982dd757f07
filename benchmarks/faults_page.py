"""The table of docs/faults.md: what kills cost training runs, from benchmarks/results/faults.json."""

import statistics
from collections.abc import Sequence
from typing import Any


def faults_table(result: dict[str, Any]) -> str:
    """Kills by layout and kind, as Markdown."""
    measured = result["measured"]
    rows = measured["rows"]
    lines = [
        "| killed | layout | kills | steps done again, mean | seconds to the first new step, median |",
        "|---|---|--:|--:|--:|",
    ]
    for kind, what in measured["kinds"].items():
        for row in rows:
            if kills := [kill for kill in row["kills"] if kill["kind"] == kind]:
                lines.append(f"| {what} | {row['layout']} | {_cost(kills)} |")
    lines += [
        "",
        f"{kills_sentence(rows)}. Runs have {measured['steps']} steps and save every {measured['saves']}; the seconds "
        "are from the start of the program, imports and loading included. Measured with "
        f"`{result['command']}` on {result['processor']}.",
    ]
    return "\n".join(lines) + "\n"


def kills_sentence(rows: Sequence[dict[str, Any]]) -> str:
    """How many kills, and what came of the runs."""
    kills, runs, equal = (sum(counts) for counts in zip(*map(_counts, rows), strict=True))
    return (
        f"{kills} kills of {runs} runs: all went on, {equal} of {runs} ended with every number of their metrics file "
        "that of a run in one piece, and no checkpoint was lost"
    )


def _counts(row: dict[str, Any]) -> tuple[int, int, int]:
    return len(row["kills"]), row["runs"], row["equal"]


def _cost(kills: Sequence[dict[str, Any]]) -> str:
    again = statistics.mean(kill["reached"] - kill["kept"] for kill in kills)
    seconds = [kill["seconds"] for kill in kills if kill["seconds"] is not None]
    return (
        f"{len(kills)} | {again:.1f} | {statistics.median(seconds):.1f}" if seconds else f"{len(kills)} | {again:.1f} |"
    )
