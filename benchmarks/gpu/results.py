"""The results of tests/gpu: benchmarks/results/gpu_tests.json, a list of runs, the oldest first.

A run has its ``date``, ``commit``, ``machine`` (origin.py) and ``tests``: test id -> ``outcome`` (one of OUTCOMES),
``reason`` of one that did not pass, ``seconds``, and ``measured``: a list of ``name``, ``value`` and the ``limit`` that
it must not exceed, if there is one. A test stands in one run, the last one that ran it.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.origin import ROOT, commit
from megatron_longpo.files import atomic_file

RESULTS = ROOT / "benchmarks" / "results" / "gpu_tests.json"
RAN = ("passed", "failed", "broken off")
"""Broken off: the process died in it."""
OUTCOMES = (*RAN, "skipped", "left out")
"""Left out: the time was up."""

Run = dict[str, Any]


def new_run(machine: dict[str, Any]) -> Run:
    """A run of this checkout, without tests yet."""
    return {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "machine": machine, "tests": {}}


def read_runs(path: Path = RESULTS) -> list[Run]:
    """All runs; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def merged(earlier: Sequence[Run], run: Run) -> list[Run]:
    """All runs with ``run`` as the last one.

    A test that it ran leaves the earlier runs; one that it skipped or left out says nothing new of one that ran.
    """
    ran_before = {name for old in earlier for name, test in old["tests"].items() if test["outcome"] in RAN}
    tests = {name: test for name, test in run["tests"].items() if test["outcome"] in RAN or name not in ran_before}
    older = [{**old, "tests": {n: test for n, test in old["tests"].items() if n not in tests}} for old in earlier]
    return [one for one in (*older, {**run, "tests": tests}) if one["tests"]]


def write_runs(runs: Sequence[Run], path: Path = RESULTS) -> None:
    """Write the file, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(runs, indent=1, allow_nan=False) + "\n", encoding="utf-8")
