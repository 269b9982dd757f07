"""docs/gpu-status.md from made-up results, and how results of several runs are put together."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.results import Run, merged, read_runs, write_runs
from benchmarks.gpu.status import Path as GpuPath
from benchmarks.gpu.status import page, proves

ROW = GpuPath("the kernel", "`a.py`", "proven", ("test_a.py::test_it[flash]", "test_a.py::test_other"))
NAMES = ("tests/gpu/test_a.py::test_it[flash-8]", "tests/gpu/test_a.py::test_other")


def a_run(tests: dict[str, Any], date: str = "2026-12-01", gpu: str = "NVIDIA H100") -> Run:
    return {"date": date, "commit": "abc", "machine": {"gpu": gpu, "torch": "2.11.0+cu130"}, "tests": tests}


def passed(*values: float, limit: float | None = 2e-2) -> dict[str, Any]:
    measured = [{"name": f"error {index}", "value": value, "limit": limit} for index, value in enumerate(values)]
    return {"outcome": "passed", "seconds": 1.0, "measured": measured}


def other(outcome: str, reason: str) -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "seconds": 1.0, "measured": []}


def cell(*runs: Run) -> str:
    return page([ROW], runs).split("proven | ")[1].split(" |\n")[0]


@pytest.mark.parametrize(
    "name, is_it",
    [
        ("tests/gpu/test_a.py::test_it[flash]", True),
        ("tests/gpu/test_a.py::test_it[auto-flash-8]", True),
        ("tests/gpu/test_a.py::test_it[flash3-8]", False),
        ("tests/gpu/test_a.py::test_it", False),
        ("tests/gpu/test_a.py::test_it_more[flash]", False),
        ("tests/gpu/test_b.py::test_it[flash]", False),
    ],
)
def test_which_cases_prove_a_row(name: str, is_it: bool) -> None:
    assert proves(ROW.tests[0], name) is is_it
    assert proves("test_a.py::test_it", "tests/gpu/test_a.py::test_it[anything]")


def test_without_results() -> None:
    assert "Nothing has run on a GPU yet." in page([ROW], [])
    assert cell() == "not yet run; its test is `tests/gpu/test_a.py`"
    assert page([GpuPath("x", "y", "z", gpu="not yet built")], []).count("| z | not yet built |") == 1


def test_skipped_is_not_run() -> None:
    run = a_run({NAMES[0]: other("skipped", "needs it"), NAMES[1]: other("left out", "the 540 seconds are up")})
    assert "Nothing has run on a GPU yet." in page([ROW], [run])
    assert cell(run) == "not yet run; its test is `tests/gpu/test_a.py`"


def test_passed_shows_the_number_nearest_to_its_limit() -> None:
    run = a_run({NAMES[0]: passed(1e-3, 3e-3), NAMES[1]: passed(5e-5, limit=1e-4)})
    assert cell(run) == "passed on NVIDIA H100, torch 2.11.0+cu130, 2026-12-01, error 0 5e-05 of 0.0001"
    assert "each where it ran last: 2 passed." in page([ROW], [run])
    speeds = a_run({NAMES[0]: passed(400.0, limit=None)})
    assert cell(speeds) == "passed on NVIDIA H100, torch 2.11.0+cu130, 2026-12-01"
    skipped = a_run({NAMES[1]: other("skipped", "needs it")})
    assert cell(speeds, skipped).endswith("2026-12-01; 1 of 2 tests not run")


@pytest.mark.parametrize("test", [other("failed", "above 0.02: {'a | b': 0.5}"), {"outcome": "broken off"}])
def test_one_failure_is_what_the_row_says(test: dict[str, Any]) -> None:
    found = cell(a_run({NAMES[0]: test}), a_run({NAMES[1]: passed(1e-3)}, "2026-12-02"))
    assert found.startswith(f"**{test['outcome']}** on NVIDIA H100, torch 2.11.0+cu130, 2026-12-01: ")
    assert found.endswith("0.5}" if "reason" in test else "the process died") and " | " not in found


def test_a_later_run_replaces_what_it_ran_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = a_run({"a": passed(1e-3), "b": other("failed", "?"), "c": other("skipped", "why"), "d": passed(1.0)})
    write_runs(merged([], first), file)
    second = a_run(
        {
            "b": passed(2e-3),
            "c": other("skipped", "now"),
            "d": other("left out", "time"),
            "e": other("left out", "time"),
        },
        "2026-12-02",
        "NVIDIA H200",
    )
    write_runs(merged(read_runs(file), second), file)
    old, new = json.loads(file.read_text())
    assert (old["date"], list(old["tests"])) == ("2026-12-01", ["a", "d"])
    assert (new["machine"]["gpu"], list(new["tests"])) == ("NVIDIA H200", ["b", "c", "e"])
    assert new["tests"]["b"]["outcome"] == "passed" and new["tests"]["c"]["reason"] == "now"
    assert [run["date"] for run in merged([old, new], a_run({"a": passed(1.0), "d": passed(1.0)}, "2026-12-03"))] == [
        "2026-12-02",
        "2026-12-03",
    ]
