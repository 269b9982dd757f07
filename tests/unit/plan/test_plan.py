"""``megatron-longpo plan``: what it says of known runs, what it finds, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.released_models import MISTRAL_7B, QWEN_7B
from megatron_longpo.commands.main import main
from megatron_longpo.data.indexed import PairWriter
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches

ROOT = Path(__file__).parents[3]
LONG = ["--trunk", "131072"]
GB = 1e9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, config in (("mistral", MISTRAL_7B), ("qwen", QWEN_7B)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def planned(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["plan", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_memory_of_7b_states_by_hand(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistral-7B on 8 GPUs: 14.5 GB of weights, 29 of fp32 gradients, 86.9 / 8 of Adam's; 39.9 with bf16 gradients."""
    (plan,) = planned(capsys, models / "mistral", *LONG, "--context-parallel-size", 8)["plans"]
    states = [plan["memory_bytes"][part] / GB for part in ("weights", "gradients", "optimizer")]
    assert states == pytest.approx([14.5, 29, 10.9], rel=0.01)
    halved = planned(capsys, models / "mistral", *LONG, "--context-parallel-size", 8, "--grad-reduce-in-bf16")
    both = sum(halved["plans"][0]["memory_bytes"][part] for part in ("weights", "gradients", "optimizer"))
    assert both / GB == pytest.approx(39.9, rel=0.01)


@pytest.mark.parametrize(("name", "kilobytes"), [("mistral", 262), ("qwen", 201)])
def test_layer_inputs_by_hand(models: Path, capsys: pytest.CaptureFixture[str], name: str, kilobytes: float) -> None:
    """Per token, of all layers; Qwen2.5-7B has 28 layers of 3,584."""
    options = ("--recompute-granularity", "full", "--branches", 1, 1)
    (plan,) = planned(capsys, models / name, *LONG, *options)["plans"]
    assert plan["memory_bytes"]["layer inputs"] / 131072 / 1000 == pytest.approx(kilobytes, rel=0.01)


@pytest.mark.parametrize(("name", "kilobytes"), [("mistral", 4461), ("qwen", 4447)])
def test_all_activations_by_hand(models: Path, capsys: pytest.CaptureFixture[str], name: str, kilobytes: float) -> None:
    (plan,) = planned(capsys, models / name, *LONG, "--branches", 1, 1)["plans"]
    kept = sum(plan["memory_bytes"][part] for part in ("layer inputs", "attention", "MLP", "residual stream"))
    assert kept / 131072 / 1000 == pytest.approx(kilobytes, rel=0.05)


def test_keeping_attention_by_hand(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4.4 GB a GPU at cp 8."""
    options = ("--context-parallel-size", 8, "--longpo-recompute", "keep-attention")
    (plan,) = planned(capsys, models / "mistral", *LONG, *options)["plans"]
    assert plan["memory_bytes"]["kept attention"] / GB == pytest.approx(4.4, rel=0.05)


@pytest.mark.parametrize(
    ("recompute", "kernel", "gpu_seconds"),
    [("full", "flash3", 47.5), ("keep-attention", "flash3", 39.5)],
)
def test_gpu_seconds_of_a_pair_by_hand(
    models: Path, capsys: pytest.CaptureFixture[str], recompute: str, kernel: str, gpu_seconds: float
) -> None:
    """Of Mistral-7B at 128K at the kernels' rates."""
    option = "--longpo-recompute" if recompute == "keep-attention" else "--recompute-granularity"
    argv = (*LONG, option, recompute, "--context-parallel-size", 8, "--efficiency", 1)
    (plan,) = planned(capsys, models / "mistral", *argv, "--longpo-attention-kernel", kernel)["plans"]
    assert plan["step_seconds_in_all"] * 8 / 8 == pytest.approx(gpu_seconds, rel=0.06)


@pytest.mark.parametrize("name", ["mistral", "qwen"])
def test_search_finds_a_layout_of_8_gpus_at_128k(models: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    found = planned(capsys, models / name, *LONG, "--gpus", 8, "--kind", "h100-80", "--search")
    best = found["plans"][0]
    assert best["verdict"] == "OK" and best["layout"]["context"] > 1
    fit = [plan["step_seconds_in_all"] for plan in found["plans"] if plan["verdict"] == "OK"]
    assert fit == sorted(fit) and len(fit) > 5
    for plan in found["plans"]:
        sizes = plan["layout"]
        assert sizes["tensor"] * sizes["pipeline"] * sizes["context"] * sizes["data"] == 8
        assert (sizes["tensor"] in (1, 2, 4)) or name == "mistral"  # Qwen2.5-7B has 28 heads on 4


def test_what_does_not_fit_is_told_what_would(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """512K tokens: too much for 8 GPUs at cp 8, so other layouts of 8; of one GPU, more GPUs."""
    argv = ("--trunk", 524288, "--context-parallel-size", 8, "--longpo-recompute", "keep-attention")
    found = planned(capsys, models / "mistral", *argv)
    assert found["plans"][0]["verdict"] == "OUT OF MEMORY"
    for near in found["nearest_that_fit"]:
        assert near["verdict"] == "OK" and near["memory_bytes_in_all"] < near["room_bytes"]
        assert near["layout"]["tensor"] > 1
    for near in planned(capsys, models / "mistral", "--trunk", 524288)["nearest_that_fit"]:
        assert near["layout"]["tensor"] * near["layout"]["context"] == 4 and near["layout"]["offloads_optimizer"]
        assert near["host_bytes_of_a_machine"] > 12 * 7.2e9  # fp32 weights and Adam's two states
    assert main(["plan", str(models / "mistral"), "--trunk", "524288"]) == 0
    assert "OUT OF MEMORY: MLP takes most. These fit, on 4 GPUs:" in capsys.readouterr().out


def test_a_dataset_is_planned_by_its_own_lengths(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory by the longest pair, time by the mean: half of the pairs are half as long."""
    lengths = (20000, 40000) * 8
    _dataset(tmp_path / "data", lengths)
    options = ("--context-parallel-size", 2, "--longpo-recompute", "keep-attention")
    mixed = planned(capsys, models / "mistral", "--longpo-data", tmp_path / "data", *options)["plans"][0]
    long, short = (
        planned(capsys, models / "mistral", "--trunk", trunk, "--branches", 100, 100, *options)["plans"][0]
        for trunk in (40000, 20000)
    )
    assert mixed["memory_bytes"] == long["memory_bytes"]
    for name in ("linear layers", "attention"):
        mean = (long["step_seconds"][name] + short["step_seconds"][name]) / 2
        assert mixed["step_seconds"][name] == pytest.approx(mean)
    assert mixed["step_model_flops"] == pytest.approx((long["step_model_flops"] + short["step_model_flops"]) / 2)
    assert mixed["num_steps"] == 2


def test_pairs_that_share_a_micro_batch_take_its_memory(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dataset(tmp_path / "data", (4000,) * 16)
    alone, packed = (
        planned(capsys, models / "mistral", "--longpo-data", tmp_path / "data", *more)["plans"][0]["memory_bytes"]
        for more in ((), ("--longpo-tokens-per-microbatch", 18000))
    )
    assert packed["inputs and targets"] == 4 * alone["inputs and targets"]
    assert packed["MLP"] > 3.9 * alone["MLP"]


def test_it_is_quick_and_needs_no_torch(models: Path) -> None:
    """torch alone takes longer to import than a plan."""
    code = (
        "import sys; from megatron_longpo.commands.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    )
    argv = ["plan", str(models / "mistral"), *LONG, "--gpus", "8", "--search"]
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_reader_that_has_enough_is_no_error(models: Path) -> None:
    command = f"{sys.executable} -m megatron_longpo.commands.main plan {models}/mistral --trunk 99 | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --longpo-data PREFIX, a built dataset, or --trunk N"),
        (["--trunk", "0"], "--trunk 0 must be above 0"),
        (["--trunk", "100", "--longpo-data", "x"], "give --longpo-data PREFIX, a built dataset, or --trunk N"),
        (["--longpo-data", "nowhere"], "nowhere.manifest.json: no such file"),
        ([*LONG, "--kind", "h900"], "--kind h900: choose one of a100-80"),
        ([*LONG, "--kind", "missing.json"], "missing.json does not exist"),
        ([*LONG, "--efficiency", "2"], "--efficiency 2 is a share of the kernels' rates"),
        ([*LONG, "--branches", "1", "2", "3"], "a pair has two, chosen and rejected"),
        ([*LONG, "--gpus", "6", "--context-parallel-size", "4"], "--gpus 6 is not divisible by the 4 GPUs"),
        ([*LONG, "--tensor-model-parallel-size", "3"], "not divisible by --tensor-model-parallel-size 3"),
        ([*LONG, "--gpus", "3"], "--global-batch-size 8 is not divisible by the 3 data-parallel ranks"),
        (
            [*LONG, "--gpus", "8", "--search", "--longpo-tokens-per-microbatch", "9"],
            "--longpo-tokens-per-microbatch 9 is below",
        ),
        ([*LONG, "--longpo-attention-kernel", "flash9"], "flash9: its rate on h100-80 is not known"),
        ([*LONG, "--longpo-objective", "solopo-dpo"], "reads short contexts too; give --short-trunk N"),
        ([*LONG, "--pairs", "4"], "--global-batch-size 8 is more than the 4 pairs"),
        ([*LONG, "--longpo-tokens-per-microbatch", "9"], "--longpo-tokens-per-microbatch 9 is below the longest pair"),
        (
            [*LONG, "--longpo-recompute", "keep-attention", "--recompute-granularity", "full"],
            "remove --recompute-granularity",
        ),
        ([*LONG, "--cp-comm-type", "a2a", "--search"], "--search compares layouts under --cp-comm-type p2p"),
    ],
)
def test_wrong_input_is_one_line(
    models: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["plan", str(models / "mistral"), *argv]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path), *LONG]) == 2
    assert "no config.json there" in capsys.readouterr().err


def test_a_kind_of_ones_own(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = {
        "memory_gib": 48,
        "peak_tflops": 360,
        "matmul_tflops": 200,
        "attention_tflops": {"flash": [150, 120]},
        "memory_gbs": 860,
        "link_gbs": 25,
        "network_gbs": 10,
        "host_gbs": 20,
    }
    path = tmp_path / "l40s.json"
    path.write_text(json.dumps(kind))
    found = planned(capsys, models / "mistral", *LONG, "--gpus", 8, "--kind", path, "--search")
    assert found["kind"]["name"] == "l40s" and found["plans"][0]["room_bytes"] == 45 * 2**30
    path.write_text(json.dumps(kind | {"price": 1}))
    assert main(["plan", str(models / "mistral"), *LONG, "--kind", str(path)]) == 2
    assert "price is not a field" in capsys.readouterr().err
    path.write_text(json.dumps(kind | {"memory_gbs": -1}))
    assert main(["plan", str(models / "mistral"), *LONG, "--kind", str(path)]) == 2
    assert "all figures must be above 0" in capsys.readouterr().err


def _dataset(prefix: Path, trunks: tuple[int, ...]) -> None:
    branch = Branch(np.arange(100, dtype=np.int32), np.array([[1, 100]], np.int32))
    short = TrunkAndBranches(np.arange(50, dtype=np.int32), branch, branch)
    with PairWriter(
        prefix, tokenizer_fingerprint="none", vocab_size=32000, max_length=50000, overlong="refuse"
    ) as writer:
        for index, trunk in enumerate(trunks):
            long = TrunkAndBranches(np.arange(trunk, dtype=np.int32) % 32000, branch, branch)
            writer.add(RenderedPair(str(index), long, (short,), 0))
        writer.finish([])
