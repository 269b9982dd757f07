"""The tables of docs/speed.md: a step by stage (results/stages.json), and its growth (results/growth.json)."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.stage_shares import STAGES, overhead, shares

GROWTH = """## Growth

Seconds, and memory beyond model and gradients, of a step of two layers that keeps attention and computes all else
again, against `a * tokens + b * attended pairs of tokens` and `c + d * tokens`, fitted to all rows at once; "fit" is
fitted over measured. Attended are the triangle of the trunk, and for either branch a rectangle under the trunk and a
triangle of its own. Ranks: what the busiest has beyond the mean.
"""


def stages_table(result: dict[str, Any]) -> str:
    """Shares of a step's time, one column a run, as Markdown."""
    runs = [(row, shares(row)) for row in result["measured"]]
    heads = [f"{row['trunk']:,}, cp {row['context_parallel_size']}" for row, _ in runs]
    lines = [f"| trunk, ranks | {' | '.join(heads)} |", f"|---|{'--:|' * len(runs)}"]
    for stage in STAGES:
        cells = [_stage_cell(found["stages"][stage], found["whole"]) for _, found in runs]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    for name, what in (("data", "waiting for data"), ("python", "Python and dispatch"), ("small", "of all: small")):
        lines.append(f"| {what} | {' | '.join(f'{found[name] / found["whole"]:.1%}' for _, found in runs)} |")
    lines.append(f"| **overhead** | {' | '.join(f'**{overhead(found):.1%}**' for _, found in runs)} |")
    lines.append(f"| s a step | {' | '.join(f'{found["whole"]:.2f}' for _, found in runs)} |")
    lines += ["", f"Measured with `{result['command']}` on {result['processor']}."]
    return "\n".join(lines) + "\n"


def stages_sentence(measured: Sequence[dict[str, Any]]) -> str:
    """Overhead, and waiting for data, of every run."""
    parts = []
    for row in measured:
        found = shares(row)
        where = f"trunk {row['trunk']:,}, cp {row['context_parallel_size']}"
        parts.append(f"{where}: {overhead(found):.1%}, data {found['data'] / found['whole']:.2%}")
    return "; ".join(parts)


def growth_table(result: dict[str, Any]) -> str:
    """Seconds and memory at every length beside the fit, and the evenness of ranks, as Markdown."""
    measured = result["measured"]
    (a, b), (c, d) = (measured["fits"][name]["coefficients"] for name in ("seconds", "peak_bytes"))
    lines = ["| trunk | branches | s a step | fit | peak MiB | fit |", "|--:|--:|--:|--:|--:|--:|"]
    for point in measured["points"]:
        seconds = a * point["tokens"] + b * point["attended_pairs"]
        peak = c + d * point["tokens"]
        lines.append(
            f"| {point['trunk']:,} | 2 x {point['branch']:,} | {point['seconds']:.2f} "
            f"| {seconds / point['seconds']:.3f} | {point['peak_bytes'] / 2**20:,.0f} "
            f"| {peak / point['peak_bytes']:.3f} |"
        )
    lines += ["", f"| ranks that share a trunk of {measured['shared']:,} | FLOPs | bytes |", "|--:|--:|--:|"]
    for number, ranks in measured["ranks"].items():
        lines.append(f"| {number} | {uneven(ranks, 'flops'):+.2%} | {uneven(ranks, 'bytes'):+.2%} |")
    lines += ["", f"Measured with `{result['command']}` on {result['processor']}."]
    return "\n".join(lines) + "\n"


def uneven(ranks: Sequence[dict[str, int]], what: str) -> float:
    """What the busiest rank has beyond the mean."""
    return max(rank[what] for rank in ranks) / mean(rank[what] for rank in ranks) - 1


def growth_sentence(measured: dict[str, Any]) -> str:
    """How far the fits are off, and how uneven ranks are."""
    off = {name: one["residual"] for name, one in measured["fits"].items()}
    worst = {what: max(uneven(ranks, what) for ranks in measured["ranks"].values()) for what in ("flops", "bytes")}
    return (
        f"seconds at most {off['seconds']:.1%} off a * tokens + b * attended pairs, memory {off['peak_bytes']:.1%} off "
        f"a line; the busiest of {', '.join(measured['ranks'])} ranks has {worst['flops']:.2%} more FLOPs and "
        f"{worst['bytes']:.2%} more bytes than their mean"
    )


def _stage_cell(stage: dict[str, float], whole: float) -> str:
    """Its share of the step, and what its operators could take of that by the machine's rates."""
    seconds = stage["forward"] + stage["backward"]
    if seconds < 5e-4 * whole:
        return f"{seconds / whole:.1%}"
    reached = f" ({min(1.0, stage['attainable'] / seconds):.0%})" if stage["attainable"] else ""
    return f"{seconds / whole:.1%}{reached}"
