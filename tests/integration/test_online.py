"""A reference in memory gives what cached log-probs give; dpo's reference reads the long context; sft has none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_longpo.data.indexed import PairReader
from tests.integration.test_reference import hf_sums
from tests.workspace import Workspace, make_model, make_workspace, read_metrics, train, verb

FOUR = ["--train-iters", "4", "--split", "70,30,0", "--eval-interval", "2", "--rotary-base", "50000"]
"""Another RoPE for the policy; the reference keeps its own."""
SUMS = ("policy_chosen_logp", "policy_rejected_logp", "reference_chosen_logp", "reference_rejected_logp")
LN_2 = math.log(2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def cached(work: Workspace) -> Path:
    """The metrics of four steps on one rank with cached log-probs."""
    return run(work, "cached", *FOUR)


def run(work: Workspace, name: str, *options: str | Path, num_ranks: int = 1) -> Path:
    """Train; returns the metrics file."""
    metrics = work.folder / f"{name}.jsonl"
    finished = train(work, "--longpo-metrics", metrics, *options, num_ranks=num_ranks)
    assert finished.status == 0, finished.output
    return metrics


def assert_same(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """To 1e-6, fp32 sums in another order; the margin against the size of the sums it is a difference of."""
    assert len(ours) > 0
    for our, their in zip(ours, theirs, strict=True):
        for name in ("step", "loss", "nll", "preference_loss", *SUMS):
            assert our[name] == pytest.approx(their[name], rel=1e-6), (our["step"], name)
        size = max(abs(their[name]) for name in SUMS)
        assert our["margin"] == pytest.approx(their["margin"], abs=1e-6 * size), our["step"]


@pytest.mark.parametrize(
    "layout, num_ranks",
    [
        pytest.param([], 1, marks=pytest.mark.slow),
        pytest.param(["--tensor-model-parallel-size", "2", "--sequence-parallel"], 2, marks=pytest.mark.slow),
        (["--pipeline-model-parallel-size", "2"], 2),
        (["--context-parallel-size", "2"], 2),
    ],
    ids=["one-rank", "tp2-sp", "pp2", "cp2"],
)
def test_online_equals_cached(work: Workspace, cached: Path, layout: list[str], num_ranks: int) -> None:
    """Over four steps and two evaluations on held-out pairs."""
    online = run(work, "-".join(["online", *layout]), "--longpo-online-reference", *FOUR, *layout, num_ranks=num_ranks)
    for split, num_lines in (("train", 4), ("valid", 2)):
        lines = read_metrics(online, split)
        assert len(lines) == num_lines
        assert_same(lines, read_metrics(cached, split))


def test_online_in_evaluation_only(work: Workspace) -> None:
    """--skip-train on two pipeline stages; seven held-out pairs, so that the last batch is filled up."""
    options = ["--skip-train", "--train-iters", "1", "--split", "40,60", "--pipeline-model-parallel-size", "2"]
    options += ["--eval-global-batch-size", "4", "--rotary-base", "50000"]
    evaluated = [
        read_metrics(run(work, name, *options, *more, num_ranks=2), "valid")
        for name, more in (("skip-cached", []), ("skip-online", ["--longpo-online-reference"]))
    ]
    assert_same(*evaluated)


def test_a_resumed_run_names_its_reference(work: Workspace, cached: Path, tmp_path: Path) -> None:
    """Its own folder holds the policy; the imported checkpoint has to be named, and then training goes on."""
    save = ["--save", tmp_path / "run", "--save-interval", "2", "--longpo-online-reference", *FOUR]
    run(work, "resumed", *save, "--exit-interval", "2")
    save += ["--load", tmp_path / "run"]
    refused = train(work, *save)
    (line,) = [line for line in refused.output.splitlines() if "error:" in line]
    assert refused.status == 2
    assert f"--longpo-reference-checkpoint {tmp_path / 'run'} is not an imported checkpoint" in line
    resumed = run(work, "resumed", *save, "--longpo-reference-checkpoint", work.imported)
    assert_same(read_metrics(resumed), read_metrics(cached))


def test_dpo_cached_and_online(work: Workspace) -> None:
    """Policy = reference on the same contexts: at step 1 margin 0 to the bit; then both go the same way."""
    score = ("score-reference", "--data", work.data, "--checkpoint", work.imported, "--context", "long")
    finished = verb(*score, "--output", work.folder / "long.npz")
    assert finished.status == 0, finished.output
    options = ["--longpo-objective", "dpo", "--train-iters", "3", "--longpo-label-smoothing", "0.1"]
    from_cache = read_metrics(run(work, "dpo", *options, "--longpo-reference", work.folder / "long.npz"))
    layout = ["--context-parallel-size", "2"]
    online = read_metrics(run(work, "dpo-online", *options, "--longpo-online-reference", *layout, num_ranks=2))
    for first in (from_cache[0], online[0]):
        assert first["margin"] == 0.0
        assert first["preference_loss"] == pytest.approx(LN_2, abs=1e-7)
    assert from_cache[-1]["margin"] != 0.0
    assert_same(online, from_cache)


def test_dpo_against_hugging_face(work: Workspace, tmp_path: Path) -> None:
    """Another model as the reference: every pair's margin by hand, from four sequences through two models."""
    make_model(tmp_path / "hf", initializer_range=0.15)
    imported = verb("import-hf", "--hf", tmp_path / "hf", "--output", tmp_path / "imported")
    assert imported.status == 0, imported.output
    options = ["--longpo-objective", "dpo", "--longpo-beta", "0.05", "--train-iters", "1", "--global-batch-size", "12"]
    options += ["--longpo-online-reference", "--longpo-reference-checkpoint", str(tmp_path / "imported")]
    (step,) = read_metrics(run(work, "other", *options))

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        for folder in (work.hf, tmp_path / "hf")
    )
    reader = PairReader(work.data)
    gains = [hf_sums(policy, pair.long) - hf_sums(reference, pair.long) for pair in map(reader.__getitem__, range(12))]
    margins = [float(gain[:, 0].sum() - gain[:, 1].sum()) for gain in gains]
    assert max(map(abs, margins)) > 1
    assert step["margin"] == pytest.approx(sum(margins) / 12, abs=1e-5 * abs(step["policy_chosen_logp"]))
    assert step["accuracy"] == sum(margin > 0 for margin in margins) / 12
    losses = [math.log1p(math.exp(-0.05 * margin)) for margin in margins]
    assert step["preference_loss"] == pytest.approx(sum(losses) / 12, rel=1e-5)


def test_sft_needs_no_reference(tmp_path: Path) -> None:
    """None was scored; what would need one is not reported."""
    unscored = make_workspace(tmp_path, num_pairs=4, score=False)
    options = ["--longpo-objective", "sft", "--train-iters", "2", "--longpo-nll-coef", "0.5"]
    first, second = read_metrics(run(unscored, "sft", *options))
    assert second["nll"] < first["nll"] and first["loss"] == pytest.approx(0.5 * first["nll"], rel=1e-9)
    assert "policy_rejected_logp" not in first  # its one branch is the chosen one
    assert not {"preference_loss", "margin", "accuracy", *SUMS[2:]} & first.keys()
