"""Small models and pairs for the tests of a GPU."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import PackInput, TreeInput, forward_pack, tree_input
from tests.unit.hf.models import save_tokenizer

VOCAB = 256
IMPLS = [
    "local",
    pytest.param(
        "transformer_engine",
        marks=pytest.mark.skipif(not find_spec("transformer_engine"), reason="needs Transformer Engine"),
    ),
]


def random_mistral(folder: Path) -> Path:
    """A random Mistral as the Hugging Face folder ``hf``, and ``imported``."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=0.05,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "hf")
    save_tokenizer(folder / "hf")
    import_hf(folder / "hf", folder / "imported")
    return folder


def pair_tree(trunk: Tensor, chosen: Tensor, rejected: Tensor, nll_tokens: Any = None) -> TreeInput:
    """A pair with one response a branch, all of it but the first token."""
    conversation = {"trunk": trunk, "chosen": chosen, "rejected": rejected}
    conversation |= {f"{name}_spans": torch.tensor([[1, len(conversation[name])]]) for name in ("chosen", "rejected")}
    return tree_input(conversation, ("chosen", "rejected"), nll_tokens=nll_tokens)


def log_probs(
    folder: Path,
    batch: PackInput,
    group: dist.ProcessGroup,
    impl: str,
    dtype: torch.dtype,
    keep_attention: bool = False,
    **changes: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the responses, and the gradients of their sum by Megatron's names; fp32, on the CPU.

    Args:
        changes: of the model's config.
    """
    hf_config = read_hf_config(folder)
    options = megatron_options(hf_config)
    config = transformer_config(options, tensor=1, pipeline=1, sequence=False, dtype=dtype, transformer_impl=impl)
    for name, value in changes.items():
        setattr(config, name, value)
    model = build_model(config, ModelShape.of(options, rope_parameters(hf_config), multiple=1)).to(dtype).cuda()
    weights = dist_checkpointing.load(model.sharded_state_dict(), str(folder / "release"))
    model.load_state_dict(weights, strict=False)
    logp_N = forward_pack(model, batch, VOCAB, group, keep_attention)
    logp_N.sum().backward()
    grads = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    return logp_N.detach().float().cpu(), grads
