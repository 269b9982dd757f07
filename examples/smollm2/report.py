"""What the example shows at its end: held-out numbers before and after, seconds and memory, curves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.stages import Finished, costs

SHOWN = (
    ("nll", "nll (nats per token)"),
    ("margin", "margin (nats)"),
    ("accuracy", "accuracy (pairs with margin > 0)"),
    ("preference_loss", "preference loss"),
    ("loss", "loss"),
)
"""Names in the metrics file and in the table."""


def print_quality(console: Console, before: dict[str, Any], after: dict[str, Any], num_steps: int) -> None:
    """Table of the held-out pairs' means, before and after training."""
    table = Table("held-out pairs", title="Before and after", title_justify="left")
    for column in ("before", f"after {num_steps} steps", "change"):
        table.add_column(column, justify="right")
    for name, title in SHOWN:
        change = after[name] - before[name]
        table.add_row(title, f"{before[name]:.4f}", f"{after[name]:.4f}", f"{change:+.4f}")
    console.print(table)


def write_summary(path: Path, before: dict[str, Any], after: dict[str, Any], stages: Sequence[Finished]) -> None:
    """Write what the tables show, in full precision: held-out means, seconds and peak bytes of every stage."""
    held_out = {name: {"before": before[name], "after": after[name]} for name, _ in SHOWN}
    path.write_text(json.dumps({"held_out": held_out, "stages": costs(stages)}, indent=2) + "\n", encoding="utf-8")


def draw_curves(train: list[dict[str, Any]], held_out: list[dict[str, Any]], path: Path) -> None:
    """Loss, nll, margin and accuracy by step: training batches as a line, held-out pairs as points."""
    import matplotlib

    matplotlib.use("Agg")  # a file is drawn; there may be no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, constrained_layout=True)
    for axis, name in zip(axes.flat, ("loss", "nll", "margin", "accuracy"), strict=True):
        for lines, style, label in ((train, "-", "training batch"), (held_out, "o--", "held-out pairs")):
            axis.plot([line["step"] for line in lines], [line[name] for line in lines], style, label=label)
        axis.set_title(name)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
    axes[0, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
