"""What the training program refuses: one clear line, status 2, and nothing written."""

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import run_ranks
from tests.workspace import Workspace, make_workspace, train, train_argv, train_main

RMSPROP = ["--longpo-optimizer", "rmsprop"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"), num_pairs=8)


def refusal(work: Workspace, *options: str | Path, num_ranks: int = 1, saves: bool = True) -> str:
    """The one error line of a run that must fail."""
    finished = train(work, *(common(work) if saves else ["--train-iters", "1"]), *options, num_ranks=num_ranks)
    lines = [line for line in finished.output.splitlines() if "error:" in line]
    assert finished.status == 2 and len(lines) == 1, finished.output
    assert "Traceback" not in finished.output
    assert not (work.folder / "refused").exists()
    return lines[0]


def common(work: Workspace) -> list[str]:
    return ["--save", str(work.folder / "refused"), "--save-interval", "1", "--train-iters", "1"]


REFUSED: list[tuple[list[str], str]] = [
    (["--context-parallel-size", "4", "--cp-comm-type", "a2a"], "at most 2 ranks can swap here"),
    (["--context-parallel-size", "4", "--cp-comm-type", "a2a+p2p"], "--hierarchical-context-parallel-sizes A B"),
    (["--context-parallel-size", "2", "--cp-comm-type", "ring"], "choose p2p, all_gather"),
    (["--micro-batch-size", "2"], "--micro-batch-size"),
    (["--longpo-tokens-per-microbatch", "8"], "8 is below the longest pair"),
    (["--rampup-batch-size", "2", "2", "8"], "--rampup-batch-size"),
    (["--num-layers", "7"], "--num-layers is 7 but the checkpoint"),
    (["--longpo-beta", "0"], "--longpo-beta 0 must be above 0"),
    (["--longpo-pref-coef", "0", "--longpo-nll-coef", "0"], "nothing to train"),
    (
        ["--longpo-objective", "ipo", "--longpo-label-smoothing", "0.1"],
        "ipo has no --longpo-label-smoothing; remove it, or choose longpo, longpo-per-turn, dpo",
    ),
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
    (["--transformer-impl", "transformer_engine"], "--transformer-impl transformer_engine needs a CUDA device"),
    (["--transformer-impl", "inference_optimized"], "choose local or transformer_engine"),
    (["--fp8-format", "hybrid"], "--fp8-format without --transformer-impl transformer_engine"),
    (["--longpo-rope-scaling", "yarn"], "--longpo-rope-scaling yarn: not valid JSON"),
    (["--longpo-rope-scaling", '{"rope_type": "dynamic", "factor": 2}'], 'rope_type is "dynamic"; supported are'),
    (
        ["--longpo-rope-scaling", '{"rope_type": "longrope"}'],
        'rope_type is "longrope"; supported are default',
    ),
    (["--longpo-rope-scaling", '{"rope_type": "linear"}'], "--longpo-rope-scaling: factor is missing"),
    (["--longpo-rope-scaling", '{"rope_type": "linear", "factor": 2, "rope_theta": 1e6}'], "with --rotary-base"),
    (["--rotary-base", "-1"], "--rotary-base: rope_theta is -1; it must be a number above 0"),
    (["--use-rope-scaling"], "--use-rope-scaling is not read; give RoPE scaling in Hugging Face's form"),
    (["--rope-scaling-factor", "4"], "--rope-scaling-factor is not read"),
    (["--position-embedding-type", "yarn"], "--position-embedding-type is not read"),
    (["--no-yarn-correction-range-round-to-int"], "--yarn-correction-range-round-to-int is not read"),
    (["--rotary-seq-len-interpolation-factor", "2"], "--rotary-seq-len-interpolation-factor is not read"),
    (["--tp-comm-overlap"], "--tp-comm-overlap is not supported"),
    (["--no-fp8-wgrad"], "--no-fp8-wgrad (Transformer Engine ignores it)"),
    (["--cuda-graph-impl", "local"], "--cuda-graph-impl (the layout of a pair changes"),
    (["--no-rope-freq", "4"], "--no-rope-freq is not supported"),
    (["--rotary-percent", "0.5"], "--rotary-percent is 0.5 but the checkpoint"),
    (["--max-position-embeddings", "100"], "--max-position-embeddings 100"),
    (["--train-samples", "4"], "Megatron refuses the options: expected iteration-based training"),
    (["--longpo-online-reference", "--longpo-reference", "REFERENCE"], "remove it or --longpo-reference"),
    (
        ["--longpo-online-reference", "--longpo-reference-checkpoint", "/nowhere"],
        "/nowhere/hf/config.json does",
    ),
    (["--longpo-objective", "dpo"], "data.reference-long.npz: no reference log-probs there"),
    (
        ["--longpo-objective", "dpo", "--longpo-reference", "REFERENCE"],
        "another context (short, need long); score the dataset with --context long",
    ),
    (["--longpo-objective", "sft", "--longpo-reference", "REFERENCE"], "sft has no reference; remove --longpo-ref"),
    (["--longpo-objective", "sft", "--longpo-online-reference"], "remove --longpo-online-reference"),
    (["--longpo-objective", "sft", "--longpo-beta", "0.1"], "sft has no --longpo-beta; remove it"),
    (["--longpo-objective", "sft", "--longpo-nll-coef", "0"], "--longpo-nll-coef are 0: there is nothing to train"),
    (
        ["--longpo-objective", "simpo", "--longpo-alpha", "1"],
        "simpo has no --longpo-alpha; remove it, or choose solopo",
    ),
    (["--longpo-objective", "solopo-dpo"], "data.reference-long.npz: no reference log-probs there"),
    (
        ["--longpo-objective", "solopo-dpo", "--longpo-reference", "REFERENCE"],
        "--longpo-reference has log-probs on short contexts, and --longpo-objective solopo-dpo reads long and short",
    ),
    (["--longpo-beta", "nan"], "--longpo-beta nan is not a finite number"),
    (["--longpo-nll-coef", "inf"], "--longpo-nll-coef inf is not a finite number"),
    (["--lr", "nan"], "--lr nan is not a finite number"),
    (["--weight-decay", "inf"], "--weight-decay inf is not a finite number"),
    (["--lr-warmup-iters", "5"], "--lr-warmup-iters 5 is not below --train-iters 1"),
    (["--lr-warmup-iters", "3", "--lr-decay-iters", "2"], "--lr-warmup-iters 3 is not below --lr-decay-iters 2"),
    (["--lr-warmup-fraction", "1"], "--lr-warmup-fraction 1 must be at least 0 and below 1"),
    (["--lr-warmup-fraction", "0.1", "--lr-warmup-iters", "1"], "remove one"),
    (["--min-lr", "1"], "--min-lr 1 is above --lr 0.001"),
    (["--lr", "-1"], "--lr -1 must be at least 0"),
    (["--decoupled-lr", "-1"], "--decoupled-lr -1 must be at least 0"),
    (["--train-iters", "0"], "--train-iters 0 must be at least 1"),
    (["--train-iters", "-1"], "--train-iters -1 must be at least 1"),
    (["--global-batch-size", "-2"], "--global-batch-size -2 must be at least 1"),
    (["--context-parallel-size", "0"], "--context-parallel-size 0 must be at least 1"),
    (["--tensor-model-parallel-size", "0"], "--tensor-model-parallel-size 0 must be at least 1"),
    (["--seed", "-1"], "--seed -1 must be at least 0"),
    (["--seed", "4294967296"], "--seed 4.29497e+09 must be at least 0 and below"),
    (["--split", "50,50", "--eval-interval", "0"], "--eval-interval 0 must be at least 1"),
    (["--split", "50,50", "--eval-iters", "-1"], "--eval-iters -1 must be at least 0"),
    (["--save-interval", "0"], "--save-interval 0 must be at least 1"),
    (["--exit-interval", "0"], "--exit-interval 0 must be at least 1"),
    (["--log-interval", "0"], "--log-interval 0 must be at least 1"),
    (["--clip-grad", "-1"], "--clip-grad -1 must be at least 0"),
    (["--adam-beta1", "1"], "--adam-beta1 1 must be at least 0 and below 1"),
    (["--adam-eps", "0"], "--adam-eps 0 must be above 0"),
    (["--num-workers", "-1"], "--num-workers -1 must be at least 0"),
    (["--wandb-project", "p"], "--wandb-project needs --wandb-exp-name"),
    (["--tensorboard-dir", "FILE/tb"], "is not a folder; choose another"),
    (["--longpo-metrics", "FILE/m.jsonl"], "is not a folder; choose another"),
    (["--longpo-metrics", "FILE"], "not a line of metrics; choose another file"),
    (["--longpo-metrics", "/"], "--longpo-metrics / is a folder"),
    (["--save", "FILE/run", "--save-interval", "1"], "is not a folder; choose another"),
    (["--data-path", "x"], "--data-path (the pairs are --longpo-data) does nothing"),
    (["--mock-data"], "--mock-data (the pairs are --longpo-data) does nothing"),
    (["--tokenizer-model", "x"], "--tokenizer-model (the dataset holds token ids) does nothing"),
    (["--tokenizer-type", "HuggingFaceTokenizer"], "--tokenizer-type does nothing"),
    (["--seq-length", "8"], "--seq-length 8 is below"),
]
"""Options, and what the line that refuses them says; REFERENCE is a cache of the short contexts."""

ENVIRONMENTS: list[tuple[dict[str, str | None], str]] = [
    ({"RANK": None}, "RANK is not set, though RANK or WORLD_SIZE is; start with torchrun"),
    ({"RANK": "first"}, "RANK is 'first', no number"),
    ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
    ({"RANK": "5"}, "RANK is 5, and WORLD_SIZE 1: ranks are 0 to 0"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no number"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999; ports are 1 to 65535"),
]
"""Changes to torchrun's variables (None: not there), and what the line that refuses them says."""


@pytest.fixture(scope="module")
def refusals(work: Workspace) -> list[str]:
    """The error line of each of REFUSED; in one process, because starting one takes longer than refusing."""
    reference, file = str(work.folder / "data.reference.npz"), work.folder / "file"
    file.write_text("of something else\n")
    many = [
        [one.replace("REFERENCE", reference).replace("FILE", str(file)) for one in options] for options, _ in REFUSED
    ]
    starts = [({}, train_argv(work, *common(work), *options)) for options in many]
    starts += [(environment, train_argv(work, *common(work))) for environment, _ in ENVIRONMENTS]
    return run_ranks(refuse_all, 1, starts)[0]


def refuse_all(starts: list[tuple[dict[str, str | None], list[str]]]) -> list[str]:
    lines = []
    torchruns = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for environment, argv in starts:
        for name, value in (torchruns | environment).items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        sys.argv[1:] = argv
        with contextlib.redirect_stderr(io.StringIO()) as output:
            status = train_main()
        (line,) = [line for line in output.getvalue().splitlines() if "error:" in line]
        assert status == 2, (argv, line)
        lines.append(line)
    return lines


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[" ".join(options) for options, _ in REFUSED])
def test_options(work: Workspace, refusals: list[str], index: int) -> None:
    assert REFUSED[index][1] in refusals[index]
    assert not (work.folder / "refused").exists()


@pytest.mark.parametrize("index", range(len(ENVIRONMENTS)), ids=[str(changes) for changes, _ in ENVIRONMENTS])
def test_environments(refusals: list[str], index: int) -> None:
    assert ENVIRONMENTS[index][1] in refusals[len(REFUSED) + index]


def test_heads_that_tensor_parallelism_does_not_divide(work: Workspace) -> None:
    line = refusal(work, "--tensor-model-parallel-size", "3", "--global-batch-size", "3", num_ranks=3)
    assert "num_attention_heads = 4" in line and "--tensor-model-parallel-size 3" in line


def test_a_batch_that_the_ranks_cannot_share(work: Workspace) -> None:
    line = refusal(work, "--global-batch-size", "3", num_ranks=2)
    assert "--global-batch-size 3 is not divisible by the 2 data-parallel ranks; give a multiple, such as 4" in line


def test_a_batch_that_virtual_stages_cannot_share(work: Workspace) -> None:
    virtual = ["--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1"]
    line = refusal(work, "--global-batch-size", "3", *virtual, num_ranks=2)
    assert "1 data-parallel ranks x 2 stages of an interleaved pipeline; give a multiple, such as 4" in line


def test_wandb_without_a_folder(work: Workspace) -> None:
    named = ["--wandb-project", "p", "--wandb-exp-name", "n"]
    assert "needs a folder to write to; add --save or --wandb-save-dir" in refusal(work, *named, saves=False)


def test_no_reference(work: Workspace) -> None:
    line = refusal(work, "--longpo-reference", work.folder / "none.npz")
    assert "score-reference" in line


def test_online_reference_of_another_tokenizer(work: Workspace, tmp_path: Path) -> None:
    shutil.copytree(work.imported, tmp_path / "other")
    identity = tmp_path / "other" / "longpo.json"
    fields = json.loads(identity.read_text())
    identity.write_text(json.dumps({**fields, "tokenizer_fingerprint": "0" * 64}))
    line = refusal(work, "--longpo-online-reference", "--longpo-reference-checkpoint", tmp_path / "other")
    assert "another tokenizer" in line and str(tmp_path / "other") in line


@pytest.mark.parametrize(
    "field, what", [("dataset_fingerprint", "dataset"), ("weights_sha256", "model"), ("rope", "RoPE")]
)
def test_reference_of_something_else(work: Workspace, tmp_path: Path, field: str, what: str) -> None:
    with np.load(work.folder / "data.reference.npz") as arrays:
        content = dict(arrays)
    manifest = json.loads(str(content["manifest"]))
    manifest[field] = manifest[field] | {"rope_type": "linear", "factor": 2.0} if field == "rope" else "0" * 64
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
