"""Put the committed results into the pages, between their marks: ``python -m benchmarks.report``."""

import argparse
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults_page import faults_table
from benchmarks.gpu.paths import PATHS
from benchmarks.gpu.results import read_runs
from benchmarks.gpu.status import page as gpu_status
from benchmarks.gpu.suites import goals_table, read_results
from benchmarks.layouts_page import layouts_table
from benchmarks.memory_page import memory_tables
from benchmarks.peers_page import peers_table
from benchmarks.sentences import SENTENCES
from benchmarks.speed_page import GROWTH, growth_table, stages_table

ROOT = Path(__file__).resolve().parents[1]
GPU_STATUS = ROOT / "docs" / "gpu-status.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks.report: begin -->\n", "<!-- benchmarks.report: end -->\n"


def main() -> None:
    """Write the pages; tests/test_repository.py says whether they are up to date."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, shown in PAGES.items():
        path = ROOT / page
        path.write_text(between(path.read_text(encoding="utf-8"), BEGIN, END, shown()), encoding="utf-8")
    GPU_STATUS.write_text(gpu_page(), encoding="utf-8")


def gpu_page() -> str:
    """docs/gpu-status.md, all of it."""
    return gpu_status(PATHS, read_runs(), goals_table(read_results()))


def between(text: str, begin: str, end: str, new: str) -> str:
    """``text`` with what stands between two marks, each there once, replaced by ``new`` and a blank line around it."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{new}\n{end}{after}"


def table(names: Iterable[str]) -> str:
    """The committed results as Markdown, each beside its command and machine."""
    lines = ["| what | measured | command | machine |", "|---|---|---|---|"]
    for name in names:
        result = _result(name)
        what, measured = SENTENCES[name](result["measured"])
        where = result["processor"] if result["device"] == "cpu" else result["device"]
        lines.append(f"| {what} | {measured} | `{result['command']}` | {where} |")
    return "\n".join(lines) + "\n"


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _faults() -> str:
    return faults_table(_result("faults"))


def _peers() -> str:
    return peers_table(_result("against_peers"))


def _memory() -> str:
    return memory_tables(_result("memory_at_length"), _result("memory_at_length_before"))


def _plan_accuracy() -> str:
    result = _result("plan_accuracy")
    rows = {row["name"]: row for row in result["measured"]}
    process = {row["ranks"]: row["held"] for name, row in rows.items() if name.startswith("process")}
    lines = ["| run | ranks | options | held, MiB | planned, MiB | |", "|---|--:|---|--:|--:|--:|"]
    for name, row in rows.items():
        if row["model"] == "tiny":
            continue
        held, planned = row["held"] - process[row["ranks"]], row["planned"]
        options = f"`{' '.join(row['options'])}`" if row["options"] else ""
        figures = f"{held / 2**20:,.0f} | {planned / 2**20:,.0f} | {planned / held - 1:+.1%}"
        lines.append(f"| {name} | {row['ranks']} | {options} | {figures} |")
    where = f"Measured with `{result['command']}` on {result['processor']}."
    return "\n".join((*lines, "", where)) + "\n"


def _speed() -> str:
    return f"{stages_table(_result('stages'))}\n{GROWTH}\n{growth_table(_result('growth'))}"


PAGES = {
    "README.md": partial(table, ("miniature", "against_peers", "sharing", "logprob_memory")),
    "docs/benchmarks.md": partial(table, tuple(SENTENCES)),
    "docs/faults.md": _faults,
    "docs/layouts.md": layouts_table,
    "docs/memory.md": _memory,
    "docs/peers.md": _peers,
    "docs/plan.md": _plan_accuracy,
    "docs/speed.md": _speed,
}
"""Page -> what it shows of the results."""


if __name__ == "__main__":
    main()
