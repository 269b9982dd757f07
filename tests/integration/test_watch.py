"""W&B, TensorBoard, the metrics file and the log of one run hold the same numbers under the same names."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_longpo.data.dataset import PairOrder, split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.trees import TreeKind, tree_lengths
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.metrics import metric_of, numbers
from megatron_longpo.metrics_file import read_metrics
from megatron_longpo.model.flops import separate_flops, tree_flops
from tests.ranks import launch
from tests.wandb_run import history
from tests.workspace import Workspace, make_workspace, train_argv, train_main


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"))


def train_offline() -> int:
    """As W&B's users do: in the environment of the ranks."""
    os.environ["WANDB_MODE"] = "offline"
    return train_main()


@pytest.fixture(scope="module")
def run(work: Workspace) -> Path:
    """Three steps on two data-parallel ranks, two of them before the run is stopped, and held-out pairs."""
    save = work.folder / "run"
    options = ["--save", save, "--train-iters", "3", "--split", "70,30,0", "--eval-interval", "2"]
    options += ["--save-interval", "2", "--tensorboard-dir", save / "tensorboard", "--longpo-peak-tflops", "0.5"]
    options += ["--wandb-project", "longpo", "--wandb-exp-name", "run", "--wandb-save-dir", save]
    for more in (["--exit-interval", "2"], []):
        finished = launch(train_offline, train_argv(work, *options, *more), num_ranks=2)
        assert finished.status == 0, finished.output
    return save


@pytest.fixture(scope="module")
def named(run: Path) -> dict[tuple[int, str], float]:
    """(step, name) -> number of the metrics file."""
    return {
        (line["step"], f"{line['split']}/{path}"): value
        for line in read_metrics(run / "metrics.jsonl")
        for path, value in numbers(line).items()
    }


def test_every_number_is_in_the_table(named: dict[tuple[int, str], float]) -> None:
    assert {step for step, _ in named} == {1, 2, 3} and len(named) > 150
    assert {name for _, name in named if metric_of(name.split("/", 1)[1]) is None} == set()


def test_tensorboard(run: Path, named: dict[tuple[int, str], float]) -> None:
    """Which keeps single precision."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags: list[str] = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "valid/"))]
    found = {(event.step, tag): event.value for tag in tags for event in events.Scalars(tag)}
    assert found == {key: float(np.float32(value)) for key, value in named.items()}
    assert not {"loss", "grad-norm", "learning-rate", "loss validation"} & set(events.Tags()["scalars"])


def test_log(run: Path, named: dict[tuple[int, str], float]) -> None:
    found: dict[tuple[int, str], float] = {}
    for line in (run / "megatron.log").read_text().splitlines():
        if line.startswith(" metrics of step "):
            step, *parts = line.removeprefix(" metrics of step ").split(" | ")
            found |= {(int(step), part.split(" ")[0]): float(part.split(" ")[1]) for part in parts}
    assert found == named


def test_wandb(run: Path, named: dict[tuple[int, str], float]) -> None:
    """A start of the program is a run of W&B's."""
    found: dict[tuple[int, str], Any] = {}
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        found |= {(step, name): value for step, values in history(folder).items() for name, value in values.items()}
    assert {key: found.get(key) for key in named} == named
    assert not {"loss", "grad-norm", "learning-rate", "loss validation"} & {name for _, name in found}


def test_a_resume_shows(named: dict[tuple[int, str], float]) -> None:
    assert [named[step, "train/resumed_from"] for step in (1, 2, 3)] == [0, 0, 2]


def test_phases_make_a_step(named: dict[tuple[int, str], float]) -> None:
    for step in (1, 2, 3):
        phases = {name: value for (at, name), value in named.items() if at == step and "/phase_seconds/" in name}
        assert sum(phases.values()) == pytest.approx(named[step, "train/seconds"], rel=1e-6)
        assert all(value > 0 for value in phases.values()) and len(phases) == 4
        assert phases["train/phase_seconds/forward_backward"] > 0.3 * named[step, "train/seconds"]


def test_flops_of_a_step(work: Workspace, named: dict[tuple[int, str], float]) -> None:
    """Three forward passes over the step's pairs, on two ranks; the peak is 0.5 TFLOP/s."""
    reader = PairReader(work.data)
    order = PairOrder(split_pairs(len(reader), "70,30,0")[0], 1234)
    lengths_T3 = tree_lengths(reader, [TreeKind("long")]).lengths_T3[[order(sample) for sample in range(4, 8)]]
    model, seconds = megatron_options(read_hf_config(work.imported)), named[2, "train/seconds"]
    for name, count in (("", tree_flops), ("pair_equivalent_", separate_flops)):
        flops = 3 * count(model, lengths_T3).sum()
        assert named[2, f"train/{name}tflops"] == pytest.approx(flops / seconds / 2 / 1e12, rel=1e-9)
        assert named[2, f"train/{name}mfu"] == pytest.approx(flops / seconds / 2 / 0.5e12, rel=1e-9)


def test_rewards(named: dict[tuple[int, str], float]) -> None:
    """beta is 0.01; means of differences are differences of means."""
    for step, split in ((1, "train"), (3, "train"), (2, "valid")):
        one = {name.split("/")[1]: value for (at, name), value in named.items() if at == step and split in name}
        gap = one["policy_chosen_logp"] - one["reference_chosen_logp"]
        assert one["chosen_gap"] == pytest.approx(gap, abs=1e-3)
        assert one["chosen_reward"] == pytest.approx(0.01 * one["chosen_gap"], rel=1e-9)
        assert one["reward_margin"] == pytest.approx(one["chosen_reward"] - one["rejected_reward"], abs=1e-5)
