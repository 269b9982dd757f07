"""The measurements of a GPU, rehearsed on a CPU, and what the page says of their results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.suites import SUITES, WHOLE, goals_table, read_results

NEEDS_A_GPU = {"peers"}
"""A program of transformers' on CUDA; benchmarks/against_peers.py has the same on a CPU."""


def rehearse(file: Path, *words: str) -> dict[str, Any]:
    """Results by name."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--rehearse", str(file), *words]
    subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True)
    return {result["name"]: result for result in read_results(file)}


def test_a_rehearsal_measures(tmp_path: Path) -> None:
    found = rehearse(tmp_path / "gpu.json", "--only", "layer", "head")
    assert [result["outcome"] for result in found.values()] == [WHOLE, WHOLE]
    assert [row["layers"] for row in found["layer"]["rows"]] == [1, 2]
    assert found["head"]["rows"][0]["gib_beyond"] < found["head"]["rows"][0]["gib_of_logits"] * 100
    assert {goal["what"] for goal in found["head"]["verdicts"]} == {goal.what for goal in GOALS["head"]}


@pytest.mark.slow
@pytest.mark.parametrize("gpus", SUITES)
def test_every_measurement_can_be_rehearsed(gpus: int, tmp_path: Path) -> None:
    names = [one.name for one in SUITES[gpus] if one.name not in NEEDS_A_GPU]
    found = rehearse(tmp_path / "gpu.json", "--gpus", str(gpus), "--only", *names)
    assert {name: result["outcome"] for name, result in found.items()} == dict.fromkeys(names, WHOLE)
    for name, result in found.items():
        assert len(result["verdicts"]) == len(GOALS[name]), name


def test_without_a_gpu_nothing_is_run() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu"]
    done = subprocess.run(
        command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "0 CUDA GPUs, needs 1: nothing was run" in done.stderr


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--rehearse", str(tmp_path / "x"), "--only", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "choose of sharing, layer" in done.stderr


def test_goals_without_and_with_results() -> None:
    assert goals_table([]).count("not run") == sum(len(GOALS[one.name]) for suite in SUITES.values() for one in suite)
    goal = GOALS["head"][0]
    verdict = goal.verdict([{"gib_beyond": 2.0}], 1.0)
    result = {
        "name": "head",
        "machine": {"gpu": "NVIDIA H100"},
        "commit": "abc",
        "outcome": WHOLE,
        "verdicts": [verdict],
    }
    assert f"| head | {goal.what}: at most 1 | **2, not reached** | NVIDIA H100, abc |" in goals_table([result])
    broken = result | {"outcome": "broken off after 40 seconds", "verdicts": []}
    assert "| broken off after 40 seconds | NVIDIA H100, abc |" in goals_table([broken])


def test_results_are_json(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps([{"name": "head"}]))
    assert read_results(tmp_path / "gpu.json") == [{"name": "head"}]
    assert read_results(tmp_path / "none.json") == []
