"""Put the study's committed results into docs/results.md, and draw them: python -m examples.miniature.results

Means are over the bases; "+-" is half of a 95% interval by Student's t over them. A difference is
taken on each base, and then its mean and interval.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import report
from examples.miniature.methods import METHODS
from examples.miniature.report import EXAMS
from examples.miniature.study import (
    AT_ONCE,
    BASES,
    COMPARED,
    FEWER_OR_MORE,
    FEWER_OR_MORE_STEPS,
    FINAL_PHASES,
    ITERATED,
    NOISES,
    NUM_PAIRS,
    STEPS,
    TUNING_PHASES,
    VARIED_BASES,
    WEIGHTS,
    Done,
    Job,
    chosen_settings,
    final_jobs,
    finished_jobs,
    tuning_scores,
    varied_jobs,
)
from examples.stages import ROOT

RESULTS = report.RESULTS / "miniature_study.jsonl"
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "results.png"
DIFFERENCES = (
    ("longpo", "sft"),
    ("longpo", "sft-response"),
    ("longpo", "dpo"),
    ("longpo", "dpo-nll"),
    ("longpo", "longpo-released"),
    ("longpo", "longpo-no-nll"),
    ("longpo-released", "sft"),
    ("longpo-response", "sft-response"),
    ("solopo-dpo", "longpo"),
    ("solopo-simpo", "longpo"),
    ("solopo-orpo", "longpo"),
    ("sft-constrained", "sft"),
)
VARIED_DIFFERENCES = (
    ("longpo", "sft"),
    ("longpo", "sft-response"),
    ("longpo", "dpo"),
    ("longpo-response", "sft-response"),
)
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> the 97.5% quantile of Student's t."""


class Results:
    """What the study found."""

    def __init__(self, done: Done) -> None:
        """Take of every base what belongs together: its final runs, and its varied runs, with one set of weights."""
        weights = {(job.base, job.phase): line.get("weights") for job, line in done.items()}

        def belongs(job: Job) -> bool:
            first = "base" if job.phase in FINAL_PHASES else "centre"
            return job.phase in TUNING_PHASES or done[job].get("weights") == weights.get((job.base, first))

        self.done = {job: line for job, line in done.items() if belongs(job)}
        self.chosen = chosen_settings(done)

    def job(self, phase: str, method: str, base: int, **varied: Any) -> Job:
        """The job of that method with its chosen setting."""
        return Job(phase=phase, base=base, method=method, **self.chosen[method]._asdict(), **varied)

    def accuracies(self, phase: str, method: str, exam: str, which: str = "exam", **varied: Any) -> list[float]:
        """Accuracy in an exam, a base each."""
        bases = BASES if phase in FINAL_PHASES else VARIED_BASES
        return [self.done[self.job(phase, method, base, **varied)][which][exam]["all"] for base in bases]

    def has(self, *phases: str) -> bool:
        """Whether every job of those phases is done."""
        jobs = [job for base in BASES for job in final_jobs(base, self.chosen)]
        jobs += [job for base in VARIED_BASES for job in varied_jobs(base, self.chosen)]
        return all(job in self.done for job in jobs if job.phase in phases)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval."""
    return mean(values), T_QUANTILES[len(values) - 1] * stdev(values) / len(values) ** 0.5


def percent(values: Sequence[float]) -> str:
    """Mean and half interval of accuracies, in percent."""
    middle, half = interval(values)
    return f"{middle:.1%} ± {100 * half:.1f}"


def points(values: Sequence[float]) -> str:
    """Mean and half interval of differences, in percentage points; bold where the interval leaves out 0."""
    middle, half = interval(values)
    text = f"{100 * middle:+.1f} ± {100 * half:.1f}"
    return f"**{text}**" if abs(middle) > half else text


def table(header: Sequence[str], rows: Iterator[Sequence[str]], num_texts: int = 1) -> str:
    """Markdown; columns of figures, after those of texts, to the right."""
    ruler = ["---" if column < num_texts else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *rows))


def tuning(found: Results) -> str:
    """The setting of every method, its score, and the spread over what was tried."""

    def rows() -> Iterator[Sequence[str]]:
        for name, method in METHODS.items():
            scores = tuning_scores(found.done, name)
            low, high = min(scores.values()), max(scores.values())
            options = found.chosen[name].options(method)
            setting = ", ".join(f"{option.removeprefix('longpo-')} {value:g}" for option, value in options.items())
            yield method.title, setting, f"{high:.3f}", f"{low:.3f} to {high:.3f}"

    return table(("method", "chosen setting", "score", "of all eight"), rows(), num_texts=2)


def main_table(found: Results) -> str:
    """Accuracy by length, of the base and of every method."""

    def rows() -> Iterator[Sequence[str]]:
        for name, title in (("base", "base"), ("raised", "base, RoPE base raised")):
            lines = [found.done[Job(phase="base", base=base, method=name)]["exam"] for base in BASES]
            yield title, *(percent([line[exam]["all"] for line in lines]) for exam in EXAMS)
        for name, method in METHODS.items():
            yield method.title, *(percent(found.accuracies("final", name, exam)) for exam in EXAMS)

    return table(("method", *EXAMS.values()), rows())


def differences(found: Results) -> str:
    """Paired differences by base."""

    def rows() -> Iterator[Sequence[str]]:
        for one, other in DIFFERENCES:
            yield f"{METHODS[one].title} - {METHODS[other].title}", *(paired(found, one, other, exam) for exam in EXAMS)

    return table(("difference, percentage points", *EXAMS.values()), rows())


def paired(found: Results, one: str, other: str, exam: str, phase: str = "final", **varied: Any) -> str:
    """The difference of two methods in one exam."""
    both = (found.accuracies(phase, name, exam, **varied) for name in (one, other))
    return points([first - second for first, second in zip(*both, strict=True)])


def varied_table(found: Results, what: str, values: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    """The compared methods and their differences as one thing is varied: (title, phase of the job, what is varied)."""

    def rows() -> Iterator[Sequence[str]]:
        for name in COMPARED:
            for title, phase, varied in values:
                accuracies = (percent(found.accuracies(phase, name, exam, **varied)) for exam in EXAMS)
                yield METHODS[name].title, title, *accuracies

    def difference_rows() -> Iterator[Sequence[str]]:
        for one, other in VARIED_DIFFERENCES:
            for title, phase, varied in values:
                found_points = (paired(found, one, other, exam, phase, **varied) for exam in EXAMS)
                yield f"{METHODS[one].title} - {METHODS[other].title}", title, *found_points

    accuracies = table(("method", what, *EXAMS.values()), rows())
    return f"{accuracies}\n{table(('difference, percentage points', what, *EXAMS.values()), difference_rows())}"


def noise(found: Results) -> str:
    """As more of the chosen answers are wrong."""
    values = [("as generated", "centre", {}), *((f"{part:.0%}", "noise", {"noise": part}) for part in NOISES)]
    return varied_table(found, "made wrong", values)


def steps(found: Results) -> str:
    """With fewer and more steps."""
    fewer, more = ((f"{number}", "steps", {"steps": number}) for number in FEWER_OR_MORE_STEPS)
    return varied_table(found, "steps", [fewer, (f"{STEPS}", "centre", {}), more])


def pairs(found: Results) -> str:
    """With fewer and more pairs, the steps the same."""
    few, some, more = ((f"{number:,}", "pairs", {"num_pairs": number}) for number in FEWER_OR_MORE)
    return varied_table(found, "pairs", [few, some, (f"{NUM_PAIRS:,}", "centre", {}), more])


def weight(found: Results) -> str:
    """LongPO as its preference weighs more."""

    def rows() -> Iterator[Sequence[str]]:
        for value in WEIGHTS:
            yield f"{value:g}", *(percent(found.accuracies("weight", "longpo", exam, weight=value)) for exam in EXAMS)

    return table(("beta x pref_coef x tokens / 2", *EXAMS.values()), rows())


def rounds(found: Results) -> str:
    """One round, two rounds, and the second's length at once."""
    exams = ("1", "4", "8", "16", "skills")

    def rows() -> Iterator[Sequence[str]]:
        for name in ITERATED:
            for title, phase, which in (
                ("1 -> 4", "rounds", "exam_of_first"), ("1 -> 4 -> 16", "rounds", "exam"),
                (f"1 -> {AT_ONCE.long}", "at-once", "exam"),
            ):  # fmt: skip
                accuracies = (percent(found.accuracies(phase, name, exam, which)) for exam in exams)
                yield METHODS[name].title, title, *accuracies

    return table(("method", "lengths", "1 length", "4", "8", "16", "skills"), rows())


Block = Callable[[Results], str]
BLOCKS: dict[str, tuple[Sequence[str], Block]] = {
    "main": (("final",), main_table),
    "differences": (("final",), differences),
    "tuning": (("tune",), tuning),
    "noise": (("centre", "noise"), noise),
    "weight": (("weight",), weight),
    "steps": (("centre", "steps"), steps),
    "pairs": (("centre", "pairs"), pairs),
    "rounds": (("rounds", "at-once"), rounds),
}
"""What stands between marks of the page: the phases that it needs, and what writes it."""
NOT_RUN = "Not run on all bases yet.\n"


def with_results(page: str, found: Results) -> str:
    """The page with what stands between the marks of every block replaced."""
    for name, (phases, block) in BLOCKS.items():
        text = block(found) if found.has(*phases) else NOT_RUN
        page = report.between(page, f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n", text)
    return page


def draw(found: Results, path: Path) -> None:
    """Every base's score by method, and the paired differences at four lengths and of the skills."""
    import matplotlib

    matplotlib.use("Agg")  # a file is drawn; there may be no display
    import matplotlib.pyplot as plt

    names = list(METHODS)[::-1]
    shown = {"4": "4 lengths (trained)", "8": "8 lengths", "skills": "skills kept"}
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 5), sharey=True, constrained_layout=True)
    for axis, (exam, title) in zip(axes, shown.items(), strict=True):
        for row, name in enumerate(names):
            values = found.accuracies("final", name, exam)
            middle, half = interval(values)
            color = "tab:blue" if name.startswith("longpo") else "tab:gray"
            axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, markersize=4)
            axis.errorbar(middle, row, xerr=half, fmt="o", color=color, capsize=3)
        axis.set_title(title)
        axis.set_xlim(-0.03, 1.06)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), [METHODS[name].title for name in names])
    figure.supxlabel("questions answered exactly: five bases (faint), their mean and its 95% interval")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write the page's tables and the picture."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = Results(finished_jobs(RESULTS))
    PAGE.write_text(with_results(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    if found.has("final"):
        draw(found, PICTURE)


if __name__ == "__main__":
    main()
