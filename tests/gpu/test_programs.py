"""The programs as a user starts them, each a process of its own: in and out of Hugging Face, scoring, training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_longpo.reference.cache import default_path
from tests.gpu.measured import Measured
from tests.gpu.models import IMPLS
from tests.workspace import Workspace, make_model, make_pairs, read_metrics, train_argv

STEPS = ("--train-iters", "3")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m")


def run(*module_and_options: str | Path, on_cpu: bool = False) -> str:
    """What it prints."""
    command = [sys.executable, "-m", *map(str, module_and_options)]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def verb(*options: str | Path) -> str:
    return run("megatron_longpo.commands.main", *options)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A random model with heads of 64, a dataset, the model imported, and its reference scored in fp32 on a CPU."""
    found = Workspace(tmp_path_factory.mktemp("programs"))
    make_model(found.hf, hidden_size=256, intermediate_size=512)
    make_pairs(found.pairs, 12)
    verb("build", "--input", found.pairs, "--tokenizer", found.hf, "--output", found.data, "--max-length", "512")
    verb("import-hf", "--hf", found.hf, "--output", found.imported, "--no-verify")
    score = ("megatron_longpo.commands.main", "score-reference", "--data", found.data, "--checkpoint", found.imported)
    run(*score, on_cpu=True)
    return found


def verified(printed: str) -> dict[str, float]:
    """What --verify printed: the difference of the logits, as part of the largest."""
    difference, largest = re.search(
        r"differ by at most (\S+) from transformers', the largest is (\S+)", printed
    ).groups()
    return {"difference of the logits": float(difference) / float(largest)}


def test_import_and_export_verify(work: Workspace, tmp_path: Path, measured: Measured) -> None:
    """Both compare in fp32 and refuse above verify.TOLERANCE; on a GPU the kernel `plain` computes attention."""
    checkpoint = tmp_path / "checkpoint"
    measured(verified(verb("import-hf", "--hf", work.hf, "--output", checkpoint, "--verify")), 1e-4)
    measured(verified(verb("export-hf", "--checkpoint", checkpoint, "--output", tmp_path / "hf", "--verify")), 1e-4)


def test_score_reference(work: Workspace, tmp_path: Path, device: torch.device, measured: Measured) -> None:
    """The default dtype of the device against fp32 on the CPU."""
    again = tmp_path / "reference.npz"
    verb("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", again)
    found, expected = (np.load(path)["logp"] for path in (again, default_path(work.data, "short")))
    error = float(np.abs(found / expected - 1).max())
    measured({"log-probs of the turns": error}, 2e-2 if device.type == "cuda" else 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_three_steps_of_training(
    impl: str, work: Workspace, tmp_path: Path, device: torch.device, measured: Measured
) -> None:
    """In bf16 under torchrun, against the same steps in fp32 with the GPUs hidden: the same course to bf16's 8 bits."""
    steps = {}
    options = {"found": ("--transformer-impl", impl, *(["--bf16"] if device.type == "cuda" else [])), "expected": ()}
    for name, its in options.items():
        metrics = tmp_path / f"{name}.jsonl"
        argv = train_argv(work, *STEPS, "--longpo-metrics", metrics, *its)
        print(run(*TORCHRUN, "megatron_longpo.train", *argv, on_cpu=name == "expected"))
        steps[name] = read_metrics(metrics)
    assert [step["step"] for step in steps["found"]] == [1, 2, 3]
    for name in ("nll", "policy_chosen_logp", "policy_rejected_logp"):
        pairs = [(ours[name], theirs[name]) for ours, theirs in zip(*steps.values(), strict=True)]
        measured({name: max(abs(ours / theirs - 1) for ours, theirs in pairs)}, 2e-2)
