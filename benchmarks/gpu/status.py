"""docs/gpu-status.md: each path, its code, what a CPU proves of it, and what the last results of tests/gpu say."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.results import RAN, Run

Result = tuple[Run, dict[str, Any]]
"""The run that a test was last in, and its entry there."""

_MEASUREMENTS = """
## Speed and memory

`python -m benchmarks.gpu` measures these on one GPU in ten minutes, after the tests of exactness; with `--gpus 8` the
last ones on eight; `mistral-7b` and `peers` where `--only` names them. Raw results: `benchmarks/results/gpu.json`.
"""


@dataclass(frozen=True, slots=True)
class Path:
    """A row of the page."""

    what: str
    code: str
    cpu: str
    tests: tuple[str, ...] = ()
    """Of tests/gpu: ``file::function``, or ``file::function[word]`` where only its cases with that word prove it."""
    gpu: str = "not yet run"
    """What to say where there is no test."""


def page(rows: Sequence[Path], runs: Sequence[Run], measurements: str = "") -> str:
    """The page as Markdown; ``measurements`` is the table of suites.py."""
    lines = ["# What has run on a GPU, and what has not", "", _summary(runs), ""]
    lines += ["| path | code | CPU | GPU |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.code} | {row.cpu} | {_state(row, runs)} |" for row in rows]
    lines += ["", "`make test-gpu` runs the tests, `python -m benchmarks.report` renews this page from their results"]
    lines += ["(`benchmarks/results/gpu_tests.json`). An error is the largest of a test, beside its limit."]
    if measurements:
        lines += [_MEASUREMENTS, measurements]
    return "\n".join(lines).rstrip() + "\n"


def proves(test: str, name: str) -> bool:
    """``test`` of a row names the collected test ``name``."""
    path, word = re.fullmatch(r"([^[]+)(?:\[(.+)\])?", test).groups()  # type: ignore[union-attr]
    base, _, case = name.removeprefix("tests/gpu/").partition("[")
    return base == path and (word is None or f"-{word}-" in f"-{case.removesuffix(']')}-")


def _summary(runs: Sequence[Run]) -> str:
    outcomes = Counter(test["outcome"] for run in runs for test in run["tests"].values())
    if not any(outcomes[outcome] for outcome in RAN):
        return "Nothing has run on a GPU yet. Everything in this release was run on CPUs, over gloo."
    found = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    return f"Tests of `tests/gpu`, each where it ran last: {found}. All else was run on CPUs, over gloo."


def _state(row: Path, runs: Sequence[Run]) -> str:
    if not row.tests:
        return row.gpu
    results = [
        (run, test)
        for run in runs
        for name, test in run["tests"].items()
        if any(proves(one, name) for one in row.tests)
    ]
    ran = [result for result in results if result[1]["outcome"] in RAN]
    if not ran:
        return f"not yet run; {_names(row)}"
    if bad := [result for result in ran if result[1]["outcome"] != "passed"]:
        run, test = bad[-1]
        return f"**{test['outcome']}** on {_where(run)}: {_cell(test.get('reason', 'the process died'))}"
    rest = f"; {len(results) - len(ran)} of {len(results)} tests not run" if len(ran) < len(results) else ""
    return f"passed on {_where(ran[-1][0])}{_worst(ran)}{rest}"


def _names(row: Path) -> str:
    files = [f"`tests/gpu/{one}`" for one in sorted({test.split("::")[0] for test in row.tests})]
    return ("its tests are " if len(files) > 1 else "its test is ") + " and ".join(files)


def _where(run: Run) -> str:
    machine = run["machine"]
    return f"{machine['gpu']}, torch {machine['torch']}, {run['date']}"


def _worst(results: Sequence[Result]) -> str:
    """The measured number that came nearest to its limit."""
    numbers = [one for _, test in results for one in test["measured"] if one["limit"]]
    if not numbers:
        return ""
    worst = max(numbers, key=lambda one: one["value"] / one["limit"])
    return f", {_cell(worst['name'])} {worst['value']:.2g} of {worst['limit']:.2g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]
