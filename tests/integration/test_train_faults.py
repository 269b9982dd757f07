"""What goes wrong in a run: a loss that is not finite, a checkpoint that is damaged, a full disk, changed inputs."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import Finished, launch
from tests.workspace import Workspace, make_workspace, read_metrics, train, train_argv, train_main

SIX = ["--train-iters", "6", "--save-interval", "2"]
BAD_PAIR = 3
FILE_LIMIT = 600_000
"""Bytes; a checkpoint's file has twice that."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose folder ``run`` holds steps 2 and 4 of 6, and ``straight`` all of them."""
    work = make_workspace(tmp_path_factory.mktemp("work"), num_pairs=8)
    for name, options in (("run", ["--exit-interval", "4"]), ("straight", [])):
        finished = train(work, *SIX, *options, "--save", work.folder / name)
        assert finished.status == 0, finished.output
    return work


@pytest.fixture
def run(work: Workspace, tmp_path: Path) -> Path:
    return shutil.copytree(work.folder / "run", tmp_path / "run")


class BadGradient(torch.autograd.Function):
    """The value as it is, and a gradient that is not a number."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.nan


def main_with(change: Callable[[Tensor], Tensor]) -> int:
    """The training program, with the loss of one pair changed."""
    from megatron_longpo import step

    stock = step.pair_reports

    def reports(token_logp_N: Tensor, batch: Any, *rest: Any) -> list[Any]:
        pairs = [int(sample["pair_index"]) for sample in batch.samples]
        found: Sequence[Any] = stock(token_logp_N, batch, *rest)
        return [
            replace(one, loss=change(one.loss)) if pair == BAD_PAIR else one
            for pair, one in zip(pairs, found, strict=True)
        ]

    step.pair_reports = reports  # type: ignore[assignment]
    return train_main()


def with_infinite_loss() -> int:
    return main_with(lambda loss: loss * torch.inf)


def with_bad_gradient() -> int:
    return main_with(BadGradient.apply)  # type: ignore[arg-type]


def with_small_files() -> int:
    """No file can grow beyond a limit, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    return train_main()


def error_of(finished: Finished) -> str:
    """The one line that says why a run ended."""
    lines = [line for line in finished.output.splitlines() if "error:" in line]
    assert finished.status == 2 and len(lines) == 1 and "Traceback" not in finished.output, finished.output
    return lines[0]


def named(work: Workspace, pair: int) -> str:
    return f"pair 'pair-{pair}' ({work.pairs}:{pair + 1})"


def losses(metrics: Path) -> list[float | None]:
    return [line["loss"] for line in read_metrics(metrics)]


def test_a_loss_that_is_not_finite_names_its_pair(work: Workspace, tmp_path: Path) -> None:
    """Of two data-parallel ranks the one that does not hold the pair says so as well."""
    argv = train_argv(work, *SIX, "--save", tmp_path / "run")
    said = error_of(launch(with_infinite_loss, argv, 2))
    assert f"step 1: the loss of {named(work, BAD_PAIR)} is not finite; lower --lr" in said
    assert not list((tmp_path / "run").glob("iter_*"))


@pytest.mark.parametrize(
    ("main", "layout", "said"),
    [
        (with_infinite_loss, ["--pipeline-model-parallel-size", "2"], "the loss of {} is not finite"),
        pytest.param(
            with_bad_gradient,
            ["--use-distributed-optimizer"],
            "the gradient is not finite, the losses of its pairs are",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["loss", "gradient"],
)
def test_a_step_is_left_out(
    work: Workspace, tmp_path: Path, main: Callable[[], int], layout: list[str], said: str
) -> None:
    """Weights and optimizer stay as they are: the first step that counts has the losses of a run that learns nothing
    until then. Where the number of steps is used up, the run ends."""
    metrics, still = tmp_path / "m.jsonl", tmp_path / "still.jsonl"
    options = ["--train-iters", "5", *layout]
    finished = launch(main, train_argv(work, *options, "--longpo-skip-steps", "2", "--longpo-metrics", metrics), 2)
    assert f"left out, 1 of at most 2 steps: step 1: {said.format(named(work, BAD_PAIR))}" in finished.output
    assert named(work, BAD_PAIR) in error_of(finished) and "2 steps were left out already" in finished.output
    skipped = [line["step"] for line in read_metrics(metrics) if line["grad_norm"] is None]
    assert skipped == [1, 3]  # an epoch is two steps
    unchanged = train(work, *options, "--lr", "0", "--longpo-metrics", still, num_ranks=2)
    assert unchanged.status == 0, unchanged.output
    assert losses(metrics)[1] == losses(still)[1] and losses(metrics)[3] != losses(still)[3]


@pytest.mark.parametrize("damage", ["cut", "tracker"])
def test_what_is_not_whole_is_passed_over(work: Workspace, run: Path, damage: str) -> None:
    """The run goes on from the one before, and ends as the run in one piece."""
    if damage == "cut":
        (file,) = (run / "iter_0000004").glob("*.distcp")
        os.truncate(file, file.stat().st_size // 2)
        said = f"iter_0000004 has a {file.name} of"
    else:
        (run / "latest_checkpointed_iteration.txt").write_text("")
        said = "latest_checkpointed_iteration.txt holds ''; going on from step 4"
    finished = train(work, *SIX, "--save", run)
    assert finished.status == 0, finished.output
    assert f"passed over in {run}: {said}" in finished.output
    assert read_metrics(run / "metrics.jsonl") == read_metrics(work.folder / "straight" / "metrics.jsonl")
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "6"


def test_a_full_disk_keeps_what_is_there(work: Workspace, run: Path) -> None:
    said = error_of(launch(with_small_files, train_argv(work, *SIX, "--save", run)))
    assert "no checkpoint can be written" in said and f"bytes are free in {run}" in said and "step 4 is kept" in said
    finished = train(work, *SIX, "--save", run)
    assert finished.status == 0 and "passed over" not in finished.output, finished.output
    assert read_metrics(run / "metrics.jsonl") == read_metrics(work.folder / "straight" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--longpo-beta", "0.5"], "objective beta was 0.01 and is 0.5"),
        (["--longpo-objective", "sft"], "objective name was 'longpo' and is 'sft'"),
        (["--global-batch-size", "2"], "batches global_batch_size was 4 and is 2"),
        (["--seed", "7"], "batches seed was 1234 and is 7"),
        (["--split", "75,25"], "data num_held_out_pairs was 0 and is 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_course_is_refused(work: Workspace, run: Path, options: list[str], said: str) -> None:
    assert f"{run} was trained otherwise: " in (line := error_of(train(work, *SIX, *options, "--save", run)))
    assert said in line and "--longpo-allow-changes" in line


def test_other_data_is_refused_until_allowed(work: Workspace, run: Path, tmp_path: Path) -> None:
    """The same files of another build: other words of the same number."""
    other = make_workspace(tmp_path / "other", num_pairs=8, short_equals_long=True)
    argv = [*train_argv(other, *SIX), "--load", str(work.imported), "--save", str(run)]
    said = error_of(launch(train_main, argv))
    assert "data fingerprint was" in said and "objective" not in said
    finished = launch(train_main, [*argv, "--longpo-allow-changes"])
    assert finished.status == 0, finished.output
    record = json.loads((run / "training_record.json").read_text())
    assert [stretch["after_step"] for stretch in record["stages"][-1]["stretches"]] == [0, 4]
