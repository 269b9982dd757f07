"""The derived memory of a step against the tensors counted while its code runs, at several shapes and layouts."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.released_models import MISTRAL_7B
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.plan.memory import PARTS, step_memory
from megatron_longpo.plan.step_shape import StepShape

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[3]
MISTRAL = MISTRAL_7B | {"num_hidden_layers": 2}
SMALL = MISTRAL | {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "vocab_size": 8000,
}
QWEN = SMALL | {"model_type": "qwen2", "num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 150000}
LARGE_STEP: dict[str, Any] = {"config": MISTRAL}
SMALL_STEP: dict[str, Any] = {"config": SMALL, "trunk": 30000, "branches": [1000, 1500]}
SETTINGS: dict[str, dict[str, Any]] = {
    "7B layers, one rank": LARGE_STEP,
    "7B layers, ring of 8, last rank": LARGE_STEP | {"context": 8, "rank": 7},
    "7B layers, heads swapped": LARGE_STEP | {"context": 8, "cp_comm_type": "a2a"},
    "7B layers, keys gathered": LARGE_STEP | {"context": 8, "cp_comm_type": "all_gather", "rank": 4},
    "7B layers, tensor parallel": LARGE_STEP | {"context": 4, "tensor": 2, "recompute": "full"},
    "7B layers, first stage": LARGE_STEP | {"context": 4, "pipeline": 2},
    "7B layers, nothing recomputed": LARGE_STEP | {"context": 8, "recompute": "none"},
    "7B layers, core attention recomputed": LARGE_STEP | {"context": 8, "recompute": "selective"},
    "small, one rank": SMALL_STEP | {"recompute": "none"},
    "small, ring of 4": SMALL_STEP | {"context": 4},
    "small, keys gathered": SMALL_STEP | {"context": 4, "cp_comm_type": "all_gather"},
    "small, heads swapped": SMALL_STEP | {"context": 4, "cp_comm_type": "a2a"},
    "small, two axes": SMALL_STEP | {"context": 2, "tensor": 2},
    "tied, large vocabulary": SMALL_STEP | {"config": QWEN},
    "short": {"config": QWEN, "trunk": 1000, "branches": [100, 100]},
}
OPTIMIZER = {"gradients", "weights", "optimizer"}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every setting, counted in a process of its own: there Megatron runs on meta tensors from its import on."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "settings.json").write_text(json.dumps(list(SETTINGS.values())))
    command = [sys.executable, "-m", "benchmarks.memory_at_length", "--settings", str(folder / "settings.json")]
    subprocess.run([*command, "--output", str(folder / "found.json")], cwd=ROOT, check=True, capture_output=True)
    return dict(zip(SETTINGS, json.loads((folder / "found.json").read_text()), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_derived_is_counted(counted: dict[str, Any], name: str) -> None:
    """In all, and what the step adds to weights, gradients and optimizer: within 10%, where a layer's own tensors are
    counted at the moment that is worst, which need not be the moment that is derived."""
    row = counted[name]
    for parts in (set(PARTS), set(PARTS) - OPTIMIZER):
        found, derived = (sum(row[way].get(part, 0) for part in parts) for way in ("counted", "derived"))
        assert derived == pytest.approx(found, rel=0.1)
    assert set(row["counted"]) <= set(PARTS)


def test_weights_and_gradients_are_exact(counted: dict[str, Any]) -> None:
    """But for what Megatron pads its buffers with: shares of 128 bytes, and starts of 64 parameters."""
    for row in counted.values():
        for part in ("weights", "gradients"):
            assert row["derived"][part] == pytest.approx(row["counted"][part], rel=1e-3)


def test_no_fp32_copy_of_all_ranks_keys(counted: dict[str, Any]) -> None:
    """And nothing larger than a chunk of the log-prob head, the MLP's tensors and one rank's share in fp32."""
    rank_share = 131072 // 8 * 32 * 128
    for name in ("7B layers, ring of 8, last rank", "7B layers, heads swapped", "7B layers, keys gathered"):
        in_fp32 = [one for one in _tensors(counted[name]) if one["dtype"] == "float32"]
        assert in_fp32
        assert all(one["bytes"] // one["number"] <= 4 * rank_share for one in in_fp32), name


def test_nothing_of_tokens_by_vocabulary(counted: dict[str, Any]) -> None:
    """A chunk of the head is 128 MiB; but for it only the weight and its gradient have the vocabulary's size."""
    row = counted["7B layers, one rank"]
    chunks = [one for one in _tensors(row) if 32000 in one["shape"] and one["shape"] != [32000, 4096]]
    assert chunks
    assert max(one["bytes"] for one in chunks) <= 128 * 2**20


def test_memory_follows_the_layout() -> None:
    """By hand: halves with two ranks, and a second stage keeps one micro-batch where the first keeps two."""
    one, two = (step_memory(_shape(context=context)).parts for context in (1, 2))
    for part in ("optimizer", "layer inputs", "kept attention"):
        assert two[part] == one[part] / 2
    first, last = (step_memory(_shape(pipeline=2, stage=stage)).parts for stage in (0, 1))
    assert first["layer inputs"] == one["layer inputs"] == 2 * last["layer inputs"]
    assert one["layer inputs"] == 2 * (131072 + 2 * 2048) * 4096 * 2
    assert one["kept attention"] == 2 * (131072 + 2 * 2048) * 32 * (128 * 2 + 4)
    parameters = 2 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    assert (one["weights"], one["gradients"], one["optimizer"]) == (2 * parameters, 4 * parameters, 8 * parameters)


def _shape(*, context: int = 1, pipeline: int = 1, stage: int = 0) -> StepShape:
    return StepShape(
        options=megatron_options(MISTRAL),
        trees=((131072, (2048, 2048)),),
        sizes=ParallelSizes(1, pipeline, context, ["p2p"], None),
        stage=stage,
        recompute="keep-attention",
        optimizer="rmsprop",
    )


def _tensors(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for moment in row["moments"].values() for one in moment["largest"]]
