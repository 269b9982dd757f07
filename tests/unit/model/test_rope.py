"""Every RoPE scaling in our one pass against transformers' own model on two separate full conversations.

Trunk and branches lie mostly beyond the original context of 32 tokens, where a scaling matters. What this does not
cover: training with another scaling than the checkpoint's (tests/integration/test_train_rope.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import forward_pack, pack, tree_input
from megatron_longpo.model.rope import TreeRotaryEmbedding
from megatron_longpo.model.rope_parameters import RopeParameters
from tests.ranks import run_ranks
from tests.unit.hf.models import VOCAB_SIZE, save_model

pytestmark = pytest.mark.ranks

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"rope_type": "default", "rope_theta": 5e5}),
    "linear": ("qwen2", {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}),
    "llama3": ("llama-tied-groups", LLAMA3),
    "llama3-bounds": ("llama", {**LLAMA3, "low_freq_factor": 3.0, "original_max_position_embeddings": 48}),
    "yarn": ("qwen2", YARN),
    "yarn-attention-factor": ("mistral-wide-heads", {**YARN, "attention_factor": 0.8}),
    "yarn-mscale": ("llama", {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5}),
    "yarn-betas": ("qwen2-tied", {**YARN, "beta_fast": 4.0, "beta_slow": 0.5}),
    "yarn-untruncated": ("llama", {**YARN, "truncate": False}),
}
TRUNK, CHOSEN, REJECTED = (
    torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length)) for length in (90, 25, 20)
)
TOLERANCE = 1e-5
"""Relative: log-probs of size 1 to 20 in fp32, kernels that sum in another order through 4 layers."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``NAME/hf`` and ``NAME/imported`` for every rope."""
    folder = tmp_path_factory.mktemp("rope")
    for name, (shape, rope) in ROPES.items():
        import_hf(save_model(folder / name / "hf", shape, rope_parameters=rope), folder / name / "imported")
    return folder


@pytest.fixture(scope="module")
def ours(models: Path) -> dict[str, Tensor]:
    """Our log-probs of every model, [chosen | rejected] conversation by token."""
    return dict(zip(ROPES, run_ranks(logps, 1, [models / name / "imported" for name in ROPES])[0], strict=True))


def logps(checkpoints: list[Path]) -> list[Tensor]:
    """On a rank: log-probs of trunk and chosen branch, then of the rejected one, in one pass."""
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    return [_logps(checkpoint) for checkpoint in checkpoints]


@torch.no_grad()
def _logps(checkpoint: Path) -> Tensor:
    hf_config = read_hf_config(checkpoint)
    options = megatron_options(hf_config)
    config = transformer_config(options, tensor=1, pipeline=1, sequence=False, dtype=torch.float32)
    model = build_model(config, ModelShape.of(options, rope_parameters(hf_config), multiple=1)).eval()
    weights = dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint / "release"))
    model.load_state_dict(weights, strict=False)
    conversation = {"trunk": TRUNK, "chosen": CHOSEN, "rejected": REJECTED}
    conversation |= {f"{name}_spans": torch.tensor([[1, len(conversation[name])]]) for name in ("chosen", "rejected")}
    tree = tree_input(conversation, ("chosen", "rejected"), nll_tokens="all")
    return forward_pack(model, pack([tree]), VOCAB_SIZE, parallel_state.get_tensor_model_parallel_group())


def theirs(folder: Path, **changes: Any) -> Tensor:
    """The same log-probs from two full conversations through the Hugging Face model with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, **changes
    ).eval()
    rows = []
    for branch, first in ((CHOSEN, 0), (REJECTED, len(TRUNK))):
        conversation = torch.cat((TRUNK, branch))
        with torch.no_grad():
            logp = model(conversation[None]).logits[0].log_softmax(-1)
        rows.append(logp[:-1].gather(1, conversation[1:, None])[first:, 0])
    return torch.cat(rows)


@pytest.mark.parametrize("name", ROPES)
def test_equals_transformers(models: Path, ours: dict[str, Tensor], name: str) -> None:
    torch.testing.assert_close(ours[name], theirs(models / name / "hf"), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", [name for name in ROPES if name != "default"])
def test_a_dropped_scaling_would_show(models: Path, ours: dict[str, Tensor], name: str) -> None:
    rope = {"rope_type": "default", "rope_theta": ROPES[name][1]["rope_theta"]}
    dropped = theirs(models / name / "hf", rope_parameters=rope)
    difference = (dropped / ours[name] - 1).abs().max().item()
    assert difference > 0.01, difference


def test_a_dropped_attention_factor_would_show(models: Path, ours: dict[str, Tensor]) -> None:
    dropped = theirs(models / "yarn" / "hf", rope_parameters={**YARN, "attention_factor": 1.0})
    difference = (dropped / ours["yarn"] - 1).abs().max().item()
    assert difference > 0.01, difference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_keeps_its_angles(dtype: torch.dtype) -> None:
    """At position 131,071 a frequency rounded to bf16 is off by hundreds of radians."""
    frequencies, _ = RopeParameters(rope_theta=1e7).frequencies(head_dim=128, max_position_embeddings=131072)
    rotary = TreeRotaryEmbedding(frequencies).to(dtype)
    position = torch.tensor([131071])
    angles = rotary(position).flatten()
    assert torch.equal(angles[:64], position * frequencies)
    assert (position * frequencies.to(dtype) - position * frequencies).abs().max() > 10
