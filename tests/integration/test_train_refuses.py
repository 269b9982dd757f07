"""What the training program refuses: one clear line, status 2, and nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.workspace import Workspace, make_workspace, train

RMSPROP = ["--longpo-optimizer", "rmsprop"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"), num_pairs=8)


def refusal(work: Workspace, *options: str | Path, num_ranks: int = 1) -> str:
    """The one error line of a run that must fail."""
    save = work.folder / "refused"
    finished = train(work, "--save", save, "--train-iters", "1", *options, num_ranks=num_ranks)
    lines = [line for line in finished.output.splitlines() if "error:" in line]
    assert finished.status == 2 and len(lines) == 1, finished.output
    assert "Traceback" not in finished.output
    assert not save.exists()
    return lines[0]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--context-parallel-size", "4", "--cp-comm-type", "a2a"], "at most 2 ranks can swap here"),
        (["--context-parallel-size", "4", "--cp-comm-type", "a2a+p2p"], "--hierarchical-context-parallel-sizes A B"),
        (["--context-parallel-size", "2", "--cp-comm-type", "ring"], "choose p2p, all_gather"),
        (["--micro-batch-size", "2"], "--micro-batch-size"),
        (["--num-layers", "7"], "--num-layers is 7 but the checkpoint"),
        (["--longpo-beta", "0"], "--longpo-beta must be above 0"),
        (["--longpo-pref-coef", "0", "--longpo-nll-coef", "0"], "nothing to train"),
        (["--longpo-objective", "ipo", "--longpo-label-smoothing", "0.1"], "ipo has no label smoothing"),
        (
            ["--longpo-recompute", "keep-attention", "--recompute-granularity", "selective"],
            "remove --recompute-granularity selective",
        ),
        (["--longpo-rmsprop-alpha", "0.9"], "is for --longpo-optimizer rmsprop"),
        ([*RMSPROP, "--longpo-rmsprop-alpha", "1"], "--longpo-rmsprop-alpha 1.0 must be at least 0 and below 1"),
        ([*RMSPROP, "--optimizer", "sgd"], "--optimizer sgd is not an option of --longpo-optimizer rmsprop"),
        ([*RMSPROP, "--adam-beta2", "0.95"], "--adam-beta2 0.95 (--longpo-rmsprop-alpha is)"),
        ([*RMSPROP, "--use-precision-aware-optimizer"], "without --optimizer-cpu-offload"),
        (["--optimizer-cpu-offload"], "there is no CUDA"),
        (["--longpo-label-smoothing", "0.5"], "must be at least 0 and below 0.5"),
        (["--split", "0,0"], "--split"),
        (["--split", "50,25,25"], "only a validation part"),
        (["--load", "/nowhere"], "no hf/config.json"),
        (["--longpo-data", "/nowhere/data"], "/nowhere/data.manifest.json"),
        (["--transformer-impl", "transformer_engine"], "--transformer-impl"),
        (["--max-position-embeddings", "100"], "--max-position-embeddings 100"),
        (["--train-samples", "4"], "Megatron refuses the options: expected iteration-based training"),
    ],
)
def test_options(work: Workspace, options: list[str], expected: str) -> None:
    assert expected in refusal(work, *options)


def test_heads_that_tensor_parallelism_does_not_divide(work: Workspace) -> None:
    line = refusal(work, "--tensor-model-parallel-size", "3", "--global-batch-size", "3", num_ranks=3)
    assert "num_attention_heads = 4" in line and "--tensor-model-parallel-size 3" in line


def test_no_reference(work: Workspace) -> None:
    line = refusal(work, "--longpo-reference", work.folder / "none.npz")
    assert "score-reference" in line


@pytest.mark.parametrize(
    "field, what", [("dataset_fingerprint", "dataset"), ("weights_sha256", "model"), ("rotary_base", "RoPE base")]
)
def test_reference_of_something_else(work: Workspace, tmp_path: Path, field: str, what: str) -> None:
    with np.load(work.folder / "data.reference.npz") as arrays:
        content = dict(arrays)
    manifest = json.loads(str(content["manifest"]))
    manifest[field] = 1.0 if field == "rotary_base" else "0" * 64
    np.savez(tmp_path / "other.npz", **{**content, "manifest": np.array(json.dumps(manifest))})
    assert f"scored with another {what}" in refusal(work, "--longpo-reference", tmp_path / "other.npz")


def test_damaged_reference(work: Workspace, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.npz"
    damaged.write_bytes((work.folder / "data.reference.npz").read_bytes()[:200])
    assert "damaged" in refusal(work, "--longpo-reference", damaged)


def test_dataset_of_another_tokenizer(work: Workspace, tmp_path: Path) -> None:
    shutil.copytree(work.imported, tmp_path / "other")
    identity = tmp_path / "other" / "longpo.json"
    fields = json.loads(identity.read_text())
    identity.write_text(json.dumps({**fields, "tokenizer_fingerprint": "0" * 64}))
    assert "another tokenizer" in refusal(work, "--load", tmp_path / "other")
