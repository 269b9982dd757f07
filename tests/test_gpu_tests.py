"""tests/gpu where there is no GPU: with nothing but the package's requirements installed it is collected, and runs on
the CPU as far as that goes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.paths import PATHS
from benchmarks.gpu.results import read_runs, write_runs
from benchmarks.gpu.status import proves

ROOT = Path(__file__).resolve().parents[1]
OLD = {
    "date": "2026-12-01",
    "commit": "abc",
    "machine": {"gpu": "another"},
    "tests": {
        "tests/gpu/test_logprob.py::test_products_are_fp32[grad]": {"outcome": "failed"},
        "tests/gpu/test_memory.py::test_memory_at_128k[transformer_engine]": {"outcome": "passed"},
    },
}


def run(*options: str, **environment: str) -> str:
    """What pytest prints of tests/gpu; it passes."""
    command = [sys.executable, "-m", "tests.only_requirements", "tests/gpu", "-q", "-rs", *options]
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def collected() -> list[str]:
    printed = run("--collect-only")
    assert "no CUDA GPU: none of tests/gpu was run, and no result was written" in printed
    return [line for line in printed.splitlines() if line.startswith("tests/gpu/")]


def test_what_the_page_names_is_there(collected: list[str]) -> None:
    named = [test for row in PATHS for test in row.tests]
    assert len(collected) > 40
    assert [test for test in named if not any(proves(test, name) for name in collected)] == []


def test_every_test_stands_for_a_row(collected: list[str]) -> None:
    named = [test for row in PATHS for test in row.tests]
    rest = {name.split("[")[0] for name in collected if not any(proves(test, name) for test in named)}
    assert rest == {"tests/gpu/test_attention.py::test_equals_masked_attention"}, "the CPU's kernel only"


def rehearsed(file: Path, *options: str, **environment: str) -> dict[str, Any]:
    """The last run of the results; every test of it passed or says why not."""
    printed = run(*options, GPU_TESTS_REHEARSAL=str(file), **environment)
    assert f"the results are in {file}" in printed
    tests = read_runs(file)[-1]["tests"]
    for name, test in tests.items():
        assert test["outcome"] == "passed" or test["reason"], name
        for one in test["measured"]:
            assert one["limit"] is None or one["value"] <= one["limit"], name
    return tests


@pytest.mark.slow
def test_a_part_is_rehearsed(tmp_path: Path) -> None:
    """Kernels, head, whole step and length on the CPU; results of other tests stay."""
    file = tmp_path / "results.json"
    write_runs([OLD], file)
    part = "logprob or hugging or keep_attention or memory or at_length or float32-8"
    tests = rehearsed(file, "-k", part)
    passed = [name for name, test in tests.items() if test["outcome"] == "passed"]
    assert len(passed) == 8 and all(tests[name]["measured"] for name in passed)
    engine = "tests/gpu/test_step.py::test_equals_the_hugging_face_model[transformer_engine]"
    assert tests[engine]["reason"] == "needs Transformer Engine"
    assert read_runs(file)[0]["tests"] == {
        "tests/gpu/test_memory.py::test_memory_at_128k[transformer_engine]": {"outcome": "passed"}
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_is_rehearsed(tmp_path: Path, collected: list[str]) -> None:
    tests = rehearsed(tmp_path / "results.json")
    assert set(tests) == set(collected)
    skipped = {test["reason"] for test in tests.values() if test["outcome"] == "skipped"}
    assert {reason.split(": ")[-1] for reason in skipped} == {
        "needs Transformer Engine",
        "is for CUDA; choose another, or auto",
    }


@pytest.mark.slow
def test_what_time_leaves_out_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    printed = run("-k", "logprob", GPU_TESTS_REHEARSAL=str(file), GPU_TESTS_SECONDS="0")
    for name in ("grad", "main-grad"):
        assert f"left out, the 0 seconds are up: tests/gpu/test_logprob.py::test_products_are_fp32[{name}]" in printed
    assert {test["outcome"] for test in read_runs(file)[0]["tests"].values()} == {"left out"}
