"""What the benchmarks of a whole step share: a random 30M-parameter Mistral, a pair for it, and its loss."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from benchmarks.common import platform
from megatron_longpo.data.trees import Answer
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import PackInput, TreeInput, forward_pack, pack, tree_input
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.model.targets import tree_logps
from megatron_longpo.objective.objectives import OBJECTIVES
from megatron_longpo.objective.preferences import AnswerLogps, Policy, Reference

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
OBJECTIVE = OBJECTIVES["longpo"]
COEFFICIENTS = OBJECTIVE.coefficients({"beta": 0.5, "pref_coef": 1.0})
REFERENCE = -1000.0
"""Any number: what matters is that all sides subtract the same."""


def random_mistral(context: int = 1, options: dict[str, Any] = OPTIONS, **config: Any) -> GPTModel:
    """The same weights in every process; bf16 on a GPU. ``config``: of transformer_config."""
    dtype = torch.float32 if platform.is_cpu() else torch.bfloat16
    sizes = {"tensor": 1, "pipeline": 1, "context": context, "sequence": False}
    made = transformer_config(options, **sizes, dtype=dtype, **config)
    torch.manual_seed(0)
    shape = ModelShape.of(options, RopeParameters(rope_theta=1e6), multiple=1)
    return build_model(made, shape).to(torch.cuda.current_device())


def random_ids(trunk: int, branch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trunk, chosen and rejected branch."""
    torch.manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (trunk + 2 * branch,))
    ids[trunk + branch] = ids[trunk]  # both branches open with the same token
    return ids[:trunk], ids[trunk : trunk + branch], ids[trunk + branch :]


def random_pair(trunk: int, branch: int) -> PackInput:
    """What this context-parallel rank holds of a pair with one response of branch - 1 tokens on each side."""
    return tree(random_ids(trunk, branch), ("chosen", "rejected"))


def tree(ids: tuple[Tensor, Tensor, Tensor], answers: tuple[str, ...]) -> PackInput:
    """What this rank holds of the tree of those answers, as a micro-batch."""
    return pack([tree_of(ids, answers)]).to(torch.cuda.current_device())


def tree_of(ids: tuple[Tensor, Tensor, Tensor], answers: tuple[str, ...]) -> TreeInput:
    """What this rank holds of it."""
    conversation = dict(zip(("trunk", "chosen", "rejected"), ids, strict=True))
    conversation |= {f"{name}_spans": torch.tensor([[1, len(conversation[name])]]) for name in ("chosen", "rejected")}
    group = parallel_state.get_context_parallel_group()
    return tree_input(conversation, answers, nll_tokens="all", cp_rank=group.rank(), cp_size=group.size())


def shared_pass(model: GPTModel, batch: PackInput, keep_attention: bool = False) -> Tensor:
    """The product's step: loss of one pair."""
    tp_group = parallel_state.get_tensor_model_parallel_group()
    logp = forward_pack(model, batch, VOCAB_SIZE, tp_group, keep_attention)
    (policy,) = tree_logps(logp, batch.targets, parallel_state.get_context_parallel_group())
    chosen, rejected = policy.logp_BK
    return loss_of(chosen, rejected, policy.nll / policy.num_in_nll)


def loss_of(chosen_K: Tensor, rejected_K: Tensor, nll: Tensor) -> Tensor:
    """From the policy's sums, nats; nll in nats per token."""
    given: dict[Answer, Tensor] = {"chosen": chosen_K, "rejected": rejected_K}
    policy: Policy = {
        ("long", answer): AnswerLogps(logp_K, torch.ones_like(logp_K)) for answer, logp_K in given.items()
    }
    reference: Reference = {("short", answer): torch.full_like(logp_K, REFERENCE) for answer, logp_K in given.items()}
    return OBJECTIVE.loss(policy, reference, nll, COEFFICIENTS)[0]
