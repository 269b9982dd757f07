"""``launch`` from a recipe to the exported model, on two CPU ranks, by the programs themselves."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoConfig

from megatron_longpo.commands.main import main
from tests.ranks import launch as run_on_ranks
from tests.workspace import make_model, make_pairs, read_metrics

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """extends = ["mistral-7b-128k.toml"]
generate = false
evaluate = false
[model]
hf = "hf"
[machine]
gpus-per-node = 2
[build]
input = ["pairs.jsonl"]
max-length = 512
[train]
context-parallel-size = 2
max-position-embeddings = 512
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    make_model(folder / "hf", "mistral")
    make_pairs(folder / "pairs.jsonl", 16)
    (folder / "small.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def work(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(inputs)
    # The programs are processes that run elsewhere: this checkout's package, wherever the environment has another.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return inputs


@pytest.fixture(scope="module")
def scored(inputs: Path) -> Path:
    """All that training reads, in the folder of a run of its own."""
    run, hf = inputs / "runs" / "checked", str(inputs / "hf")
    data = f"{run}/data/pairs"
    for words in (
        ["build", "--input", f"{inputs}/pairs.jsonl", "--tokenizer", hf, "--output", data, "--max-length", "512"],
        ["import-hf", "--hf", hf, "--output", f"{run}/imported", "--no-verify"],
        ["score-reference", "--data", data, "--checkpoint", f"{run}/imported"],
    ):
        assert run_on_ranks(main, words).status == 0
    return run


@pytest.mark.slow
def test_the_released_recipe_runs_and_is_then_done(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch = [sys.executable, "-m", "megatron_longpo.commands.main", "launch", "small.toml"]
    assert subprocess.run(launch, check=False).returncode == 0, capfd.readouterr().err
    run = work / "runs" / "small"
    assert [step["num_pairs"] for step in read_metrics(run / "run" / "metrics.jsonl")] == [8, 8]  # one epoch of 16
    config = AutoConfig.from_pretrained(run / "exported")
    assert config.rope_parameters["rope_theta"] == 1e7 and config.max_position_embeddings == 512
    capfd.readouterr()
    assert main(["launch", "small.toml"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown if ": done" in line] == [
        *("build", "import-hf", "score-reference", "train", "export-hf")
    ]
    assert shown[-1] == "nothing left to do"
    assert main(["launch", "small.toml", "--set", "train.lr=1e-6"]) == 2
    assert "train is done, with other options than these (5e-7, now 1e-6)" in capfd.readouterr().err


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        slow("train.split=80,10,10", "--split 80,10,10: only a validation part can be held out"),
        ("train.global-batch-size=99", "--global-batch-size 99 is more than the 16 training pairs"),
        slow("train.max-position-embeddings=100", "--max-position-embeddings 100 is below the dataset's --max-length"),
        slow('train.longpo-reference=["nothing.npz"]', "nothing.npz: no reference log-probs there"),
        ("", ""),
    ],
)
def test_training_is_checked_whole_where_its_inputs_are_there(
    work: Path, scored: Path, capfd: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    settings = ["--set", "run.folder=runs/checked", *(["--set", setting] if setting else [])]
    assert main(["launch", "small.toml", "--dry-run", *settings]) == (2 if message else 0)
    shown = capfd.readouterr()
    assert f"[train] {message}" in shown.err if message else "train: to do" in shown.out.splitlines()
