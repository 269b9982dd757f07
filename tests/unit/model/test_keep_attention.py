"""--longpo-recompute keep-attention computes attention once a layer, and the same gradients to the bit."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model import attention
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import forward_pack, pack, tree_input
from megatron_longpo.model.rope_parameters import RopeParameters
from tests.ranks import run_ranks

NUM_LAYERS = 3
OPTIONS = megatron_options(
    {
        "model_type": "llama",
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    }
)


def step(recompute: bool, keep: bool) -> tuple[int, list[torch.Tensor]]:
    """(times that attention was computed, gradients)."""
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    config = transformer_config(OPTIONS, tensor=1, pipeline=1, sequence=False, dtype=torch.float32)
    if recompute:
        config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    torch.manual_seed(0)
    model = build_model(config, ModelShape.of(OPTIONS, RopeParameters(rope_theta=1e4), multiple=1))
    count, compute = 0, attention.tree_attention

    def counting(*args: Any) -> Any:
        nonlocal count
        count += 1
        return compute(*args)

    attention.tree_attention = counting
    spans = torch.tensor([[1, 6]])
    conversation = {name: torch.arange(n) for name, n in (("trunk", 20), ("chosen", 6), ("rejected", 6))}
    conversation |= {"chosen_spans": spans, "rejected_spans": spans}
    tree = tree_input(conversation, ("chosen", "rejected"), nll_tokens="all")
    batch = pack([tree, tree])
    logp = forward_pack(model, batch, 50, parallel_state.get_tensor_model_parallel_group(), keep)
    logp.sum().backward()
    return count, [p.grad for p in model.parameters() if p.grad is not None]


def test_attention_is_computed_once() -> None:
    results = {name: run_ranks(step, 1, *flags)[0] for name, flags in FLAGS.items()}
    assert {name: count for name, (count, _) in results.items()} == {
        "none": NUM_LAYERS,
        "full": 2 * NUM_LAYERS,
        "keep-attention": NUM_LAYERS,
    }
    gradients = [found for _, found in results.values()]
    assert len(gradients[0]) > NUM_LAYERS
    for others in zip(*gradients, strict=True):
        assert torch.equal(others[0], others[1]) and torch.equal(others[0], others[2])


FLAGS = {"none": (False, False), "full": (True, False), "keep-attention": (True, True)}
