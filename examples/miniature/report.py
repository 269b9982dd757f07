"""What the miniature shows at its end: a table, a picture, and three questions with everybody's answers."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.stages import Finished, costs, print_costs

NAMES = {
    "base": "base: knows short texts",
    "raised": "base, RoPE base raised",
    "sft": "SFT",
    "dpo": "DPO",
    "longpo": "LongPO",
}
EXAMS = {"1": "1 length", "2": "2", "4": "4 (trained)", "8": "8", "skills": "skills"}


def show(work: Path, finished: list[Finished], console: Console) -> None:
    """Print the tables and the answers, and draw the picture."""
    exam: dict[str, Any] = json.loads((work / "exam.json").read_text(encoding="utf-8"))
    manifest = json.loads((work / "pairs.jsonl.manifest.json").read_text(encoding="utf-8"))
    console.rule("[bold]result", align="left")
    print_pairs(console, manifest["counts"])
    print_accuracy(console, exam["models"])
    print_answers(console, exam)
    print_costs(console, finished)
    picture = work / "accuracy.png"
    draw(exam["models"], picture)
    write_summary(work / "summary.json", exam["models"], finished)
    console.print(f"picture: {picture}\ntrained model (Hugging Face): {work / 'models' / 'longpo'}", soft_wrap=True)


def print_pairs(console: Console, counts: dict[str, Any]) -> None:
    """One line on what the pairs were made of."""
    same = counts["dropped"].get("too similar", 0)
    console.print(
        f"{counts['asked']:,} questions were answered from a chunk and from the whole text; {same:,} answers "
        f"were the same both times and teach nothing; {counts['turns']:,} stand in {counts['pairs']:,} pairs",
        highlight=False,
    )


def print_accuracy(console: Console, models: dict[str, Any]) -> None:
    """Part of the questions answered exactly, by length of the text."""
    table = Table("", title="Right answers to new questions, by length of the text", title_justify="left")
    for title in EXAMS.values():
        table.add_column(title, justify="right")
    for name, found in models.items():
        row = [f"{found['accuracy'][exam]['all']:.1%}" for exam in EXAMS]
        table.add_row(NAMES[name], *row, style="bold" if name == "longpo" else None)
    console.print(table)


def print_answers(console: Console, exam: dict[str, Any]) -> None:
    """Three questions on one long text, with the answers of each model."""
    num_words = len(exam["text"].split())
    table = Table("", title=f"Three questions on a text of {num_words} words", title_justify="left")
    for asked in exam["asked"]:
        table.add_column(asked["question"])
    table.add_row("the right answer", *(asked["answer"] for asked in exam["asked"]))
    table.add_section()
    for name, found in exam["models"].items():
        table.add_row(NAMES[name], *found["answers"], style="bold" if name == "longpo" else None)
    console.print(table)


def write_summary(path: Path, models: dict[str, Any], finished: list[Finished]) -> None:
    """Write what the tables show, in full precision: accuracies, seconds and peak bytes of every stage."""
    accuracy = {name: found["accuracy"] for name, found in models.items()}
    path.write_text(json.dumps({"accuracy": accuracy, "stages": costs(finished)}, indent=2) + "\n", encoding="utf-8")


def draw(models: dict[str, Any], path: Path) -> None:
    """Accuracy by length of the text, a line a model."""
    import matplotlib

    matplotlib.use("Agg")  # a file is drawn; there may be no display
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    lengths = [exam for exam in EXAMS if exam.isdigit()]
    for name, found in models.items():
        values = [found["accuracy"][length]["all"] for length in lengths]
        is_base = name in ("base", "raised")
        axis.plot(lengths, values, "o:" if is_base else "o-", color="gray" if is_base else None, label=NAMES[name],
                  linewidth=2.5 if name == "longpo" else 1.5, alpha=0.6 if name == "raised" else 1.0)  # fmt: skip
    axis.set_xlabel("length of the text, in lengths that the base was taught")
    axis.set_ylabel("questions answered exactly")
    axis.set_ylim(-0.03, 1.03)
    axis.axvline(lengths.index("4"), color="gray", linewidth=0.8, alpha=0.4)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
