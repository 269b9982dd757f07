"""What the benchmarks of a whole step share: a random 30M-parameter Mistral, a pair for it, and its loss."""

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from benchmarks.common import platform
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import PackInput, forward_pack, pack, pair_input
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.model.targets import pair_logps
from megatron_longpo.objective.longpo import Objective, margin_by_turn, pair_loss

VOCAB_SIZE = 8192
OPTIONS = megatron_options(
    {
        "model_type": "llama",
        "num_hidden_layers": 8,
        "hidden_size": 448,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 56,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 131072,
    }
)
OBJECTIVE = Objective(beta=0.5, pref_coef=1.0)
REFERENCE = -1000.0
"""Any number: what matters is that all sides subtract the same."""


def random_mistral(context: int = 1) -> GPTModel:
    """The same weights in every process; bf16 on a GPU."""
    dtype = torch.float32 if platform.is_cpu() else torch.bfloat16
    config = transformer_config(OPTIONS, tensor=1, pipeline=1, context=context, sequence=False, dtype=dtype)
    torch.manual_seed(0)
    shape = ModelShape.of(OPTIONS, RopeParameters(rope_theta=1e6), multiple=1)
    return build_model(config, shape).to(torch.cuda.current_device())


def random_ids(trunk: int, branch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trunk, chosen and rejected branch."""
    torch.manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (trunk + 2 * branch,))
    ids[trunk + branch] = ids[trunk]  # both branches open with the same token
    return ids[:trunk], ids[trunk : trunk + branch], ids[trunk + branch :]


def random_pair(trunk: int, branch: int) -> PackInput:
    """This context-parallel rank's share of a pair with one response of branch - 1 tokens on each side."""
    spans = torch.tensor([[1, branch]])
    group = parallel_state.get_context_parallel_group()
    pair = pair_input(
        *random_ids(trunk, branch), spans, spans, nll_over_all=True, cp_rank=group.rank(), cp_size=group.size()
    )
    return pack([pair]).to(torch.cuda.current_device())


def shared_pass(model: GPTModel, batch: PackInput, keep_attention: bool = False) -> Tensor:
    """The product's step: loss of one pair."""
    tp_group = parallel_state.get_tensor_model_parallel_group()
    logp = forward_pack(model, batch, VOCAB_SIZE, tp_group, keep_attention)
    (policy,) = pair_logps(logp, batch.targets, parallel_state.get_context_parallel_group())
    return loss_of(policy.chosen_K.sum(), policy.rejected_K.sum(), policy.nll)


def loss_of(chosen: Tensor, rejected: Tensor, nll: Tensor) -> Tensor:
    """From the policy's sums, nats."""
    reference = torch.full_like(chosen, REFERENCE)
    return pair_loss(margin_by_turn(chosen, rejected, reference, reference), nll, OBJECTIVE).loss
