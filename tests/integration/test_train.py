"""The training program: its first step, its metrics, and going on after every kind of interruption."""

import socket
from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing import load_common_state_dict
from transformers import AutoConfig

from megatron_longpo.data.dataset import PairOrder, split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.trees import TreeKind, tree_lengths
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.hf.training_record import training_record_at
from megatron_longpo.model.flops import tree_flops
from tests.workspace import Workspace, make_workspace, read_metrics, train, verb

TEN = ["--train-iters", "10", "--save-interval", "5", "--split", "70,30,0", "--eval-interval", "5"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def straight(work: Workspace) -> Path:
    """Ten steps in one go."""
    finished = train(work, "--save", work.folder / "straight", "--longpo-metrics", work.folder / "straight.jsonl", *TEN)
    assert finished.status == 0, finished.output
    return work.folder / "straight"


def test_first_margin_is_zero_when_short_is_long(tmp_path: Path) -> None:
    """Policy = reference on the same contexts: margin 0 to the bit, preference loss log 2."""
    same = make_workspace(tmp_path, num_pairs=4, short_equals_long=True)
    finished = train(same, "--train-iters", "1", "--longpo-metrics", tmp_path / "metrics.jsonl")
    assert finished.status == 0, finished.output
    (step,) = read_metrics(tmp_path / "metrics.jsonl")
    assert step["margin"] == 0.0
    assert step["policy_chosen_logp"] == step["reference_chosen_logp"] != 0.0
    assert step["preference_loss"] == pytest.approx(0.693147, abs=1e-6)


def test_skip_train_evaluates_only(tmp_path: Path) -> None:
    """One line, at step 0, and the margin of what policy and reference see alike."""
    same = make_workspace(tmp_path, num_pairs=4, short_equals_long=True)
    metrics = tmp_path / "metrics.jsonl"
    finished = train(same, "--skip-train", "--split", "50,50,0", "--train-iters", "1", "--longpo-metrics", metrics)
    assert finished.status == 0, finished.output
    (line,) = read_metrics(metrics, "valid")
    assert line["step"] == 0 and line["margin"] == 0.0 and line["nll"] > 1
    assert read_metrics(metrics) == []


def test_metrics(work: Workspace, straight: Path) -> None:
    steps = read_metrics(work.folder / "straight.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 11))
    for step in steps:
        assert step["num_pairs"] == 4
        assert step["num_tokens"]["trunk"] > 0 and step["num_tokens"]["branches"] > 0
        assert step["loss"] == pytest.approx(step["nll"] + 0.01 * step["preference_loss"], rel=1e-9)
    assert steps[-1]["nll"] < steps[0]["nll"]
    assert [line["step"] for line in read_metrics(work.folder / "straight.jsonl", "valid")] == [5, 10]


def test_flops_are_those_of_the_pairs(work: Workspace, straight: Path) -> None:
    """Not of ``--seq-length`` a sample, which would be half as many again. Within 3%: Megatron counts padding rows of
    the vocabulary too."""
    saved = load_common_state_dict(str(straight / "iter_0000010"))["num_floating_point_operations_so_far"]
    reader = PairReader(work.data)
    order = PairOrder(split_pairs(len(reader), "70,30,0")[0], 1234)
    pairs = [order(sample) for sample in range(10 * 4)]
    lengths_T3 = tree_lengths(reader, [TreeKind("long")]).lengths_T3
    forward = tree_flops(megatron_options(read_hf_config(work.imported)), lengths_T3[pairs]).sum()
    assert 3 * forward < saved < 1.03 * 3 * forward


def test_resumes_bit_for_bit(work: Workspace, straight: Path) -> None:
    """Five steps, then the same command again."""
    save, metrics = work.folder / "resumed", work.folder / "resumed.jsonl"
    for options in (["--exit-interval", "5"], []):
        finished = train(work, "--save", save, "--longpo-metrics", metrics, *TEN, *options)
        assert finished.status == 0, finished.output
    assert "resuming from --save" in finished.output
    for split in ("train", "valid"):
        assert read_metrics(metrics, split) == read_metrics(work.folder / "straight.jsonl", split)
    assert (save / "training_record.json").read_bytes() == (straight / "training_record.json").read_bytes()
    assert (save / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def test_the_recipe_is_what_was_used(work: Workspace, straight: Path) -> None:
    """Given options, defaults and the dataset's counts; nothing that names this machine."""
    (stage,) = training_record_at(straight, 10)
    (stretch,) = stage.stretches
    used = stretch.settings
    assert stage.num_steps == 10 and stretch.after_step == 0
    assert used["objective"] == {
        "name": "longpo",
        "nll_coef": 1.0,
        "pref_coef": 0.01,
        "beta": 0.01,
        "label_smoothing": 0.0,
        "nll_tokens": "all",
    }
    assert used["optimizer"]["name"] == "adamw" and used["schedule"]["learning_rate"] == 1e-3
    assert used["batches"]["global_batch_size"] == 4 and used["batches"]["planned_steps"] == 10
    assert used["precision"]["weights"] == "float32" and used["layout"]["num_ranks"] == 1
    assert used["reference"]["context"] == "short"
    assert used["reference"]["weights_sha256"] == used["model"]["imported_weights_sha256"]
    manifest = PairReader(work.data).manifest
    assert used["data"]["fingerprint"] == manifest.fingerprint
    assert used["data"]["num_tokens"] == manifest.num_tokens
    assert (used["data"]["num_pairs"], used["data"]["num_held_out_pairs"]) == (12, 4)
    stored = (straight / "training_record.json").read_text()
    assert str(work.folder) not in stored and socket.gethostname() not in stored and "null" not in stored


def test_survives_a_kill_while_saving(work: Workspace, straight: Path) -> None:
    """SIGKILL between the first file of the checkpoint and its tracker; the same command then starts over cleanly."""
    save, metrics = work.folder / "killed", work.folder / "killed.jsonl"
    tracker = save / "latest_checkpointed_iteration.txt"
    started = save / "iter_0000005"
    train(work, "--save", save, "--longpo-metrics", metrics, *TEN, kill_when=started.exists)
    assert started.exists() and not tracker.exists(), "the kill came before the checkpoint was complete"
    finished = train(work, "--save", save, "--longpo-metrics", metrics, *TEN)
    assert finished.status == 0, finished.output
    assert read_metrics(metrics) == read_metrics(work.folder / "straight.jsonl")


@pytest.mark.parametrize(
    "layout",
    [
        ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
        pytest.param(["--pipeline-model-parallel-size", "2"], marks=pytest.mark.slow),
        ["--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1"],
        ["--context-parallel-size", "2"],
        pytest.param([], marks=pytest.mark.slow),
    ],
)
def test_resumes_in_another_layout(work: Workspace, straight: Path, layout: list[str], tmp_path: Path) -> None:
    """Distributed optimizer on (2, 1, 1) for five steps, then on another layout: 1e-6, fp32 sums in another order."""
    common = [
        "--save",
        str(tmp_path / "run"),
        "--longpo-metrics",
        str(tmp_path / "m.jsonl"),
        "--use-distributed-optimizer",
    ]
    first = ["--tensor-model-parallel-size", "2", "--exit-interval", "5"]
    for options in (first, layout):
        finished = train(work, *common, *TEN, *options, num_ranks=2)
        assert finished.status == 0, finished.output
    layouts = [
        (one.after_step, one.settings["layout"]) for one in training_record_at(tmp_path / "run", 10)[0].stretches
    ]
    assert [after for after, _ in layouts] == [0, 5] and layouts[0] != layouts[1]
    for ours, theirs in zip(
        read_metrics(tmp_path / "m.jsonl"), read_metrics(work.folder / "straight.jsonl"), strict=True
    ):
        for name in ("loss", "nll", "preference_loss", "policy_chosen_logp", "policy_rejected_logp"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (ours["step"], name)


@pytest.mark.parametrize("num_ranks, num_microbatches", [(1, 2), (2, 1)])
def test_pairs_share_a_micro_batch(
    work: Workspace, straight: Path, num_ranks: int, num_microbatches: int, tmp_path: Path
) -> None:
    """Packed, evaluated and resumed in between: the same course as a pair at a time, to fp32 sums in another order."""
    metrics = tmp_path / "m.jsonl"
    options = ["--longpo-tokens-per-microbatch", "800", "--save", tmp_path / "run", "--longpo-metrics", metrics, *TEN]
    for last in (["--exit-interval", "5"], []):
        finished = train(work, *options, *last, num_ranks=num_ranks)
        assert finished.status == 0, finished.output
    assert f"{num_microbatches} micro-batches on each of {num_ranks} data-parallel ranks" in finished.output
    for split in ("train", "valid"):
        packed, alone = (read_metrics(path, split) for path in (metrics, work.folder / "straight.jsonl"))
        for ours, theirs in zip(packed, alone, strict=True):
            for name in ("loss", "nll", "policy_chosen_logp", "policy_rejected_logp"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (ours["step"], name)
            assert ours["by_turn"].keys() == theirs["by_turn"].keys() >= {"1", "2"}
            assert ours["by_length"].keys() == theirs["by_length"].keys()


def test_the_output_layers_weight_is_waited_for(work: Workspace, straight: Path, tmp_path: Path) -> None:
    """It fills a bucket of its own, whose all-gather is on its way when the step begins."""
    options = [
        "--use-distributed-optimizer",
        "--overlap-grad-reduce",
        "--overlap-param-gather",
        "--ddp-bucket-size",
        "1500",
    ]
    metrics = tmp_path / "m.jsonl"
    finished = train(work, "--save", tmp_path / "run", "--longpo-metrics", metrics, *TEN, *options, num_ranks=2)
    assert finished.status == 0, finished.output
    assert "attention by the kernel cpu" in finished.output
    overlapped, alone = read_metrics(metrics), read_metrics(work.folder / "straight.jsonl")
    for ours, theirs in zip(overlapped, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6), ours["step"]


def test_bf16(work: Workspace, straight: Path, tmp_path: Path) -> None:
    """bf16 weights with fp32 master weights: the same course to bf16's 8 bits, and an export in bf16."""
    options = ["--bf16", "--tensor-model-parallel-size", "2", "--sequence-parallel", "--use-distributed-optimizer"]
    options += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    options += ["--overlap-grad-reduce", "--overlap-param-gather"]
    metrics, run = tmp_path / "m.jsonl", tmp_path / "run"
    finished = train(work, "--save", run, "--longpo-metrics", metrics, *TEN, *options, num_ranks=2)
    assert finished.status == 0, finished.output
    for ours, theirs in zip(read_metrics(metrics), read_metrics(work.folder / "straight.jsonl"), strict=True):
        for name in ("nll", "policy_chosen_logp", "policy_rejected_logp"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-2), (ours["step"], name)
    exported = verb("export-hf", "--checkpoint", run, "--output", tmp_path / "hf")
    assert exported.status == 0, exported.output
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "after 10 steps of LongPO" in card and "| precision | weights | bfloat16 |" in card
    assert "| metric | training, step 10 | held out, step 5 | held out, step 10 |" in card
    assert f"| nll | {read_metrics(metrics)[-1]['nll']:.6g} | {read_metrics(metrics, 'valid')[0]['nll']:.6g} |" in card
    assert str(work.folder) not in card and str(tmp_path) not in card
    assert AutoConfig.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16
