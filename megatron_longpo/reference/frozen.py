"""The frozen reference: an imported model with its own rotary settings, and the log-probs it gives to answers.

Used before training (score.py) and during it (online.py). Letters in shapes: K = turns of a conversation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import load as load_checkpoint
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import check_divides, megatron_options
from megatron_longpo.hf.folder import RELEASE
from megatron_longpo.hf.sidecar import read_hf_config, read_identity
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.exchange import check_exchange
from megatron_longpo.model.forward import forward_pack, pack, tree_input
from megatron_longpo.model.kernels import trunk_multiple
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.model.targets import tree_logps

Conversation = Mapping[str, Tensor]
"""data/dataset.py's Conversation, as tensors."""
ScoredTree = tuple[Conversation, Sequence[str]]
"""A conversation and the answers of it that are branches, "chosen", "rejected" or both."""


@dataclass(frozen=True, slots=True)
class FrozenReference:
    """This rank's part of the model, without gradients."""

    model: nn.Module
    vocab_size: int
    """Tokens of the real vocabulary."""
    sequence_multiple: int
    """A rank's tokens of a sequence are padded to a multiple of this."""
    trunk_multiple: int
    """A trunk is padded to a multiple of this."""


def check_reference_checkpoint(checkpoint: Path, sizes: ParallelSizes, option: str) -> None:
    """A reference can be loaded from ``checkpoint`` (named by ``option``) on axes of these sizes.

    Raises:
        UserError: it holds no imported weights, or its shape does not divide by the axes.
    """
    options = megatron_options(read_hf_config(checkpoint))
    if not (checkpoint / RELEASE).is_dir():
        raise UserError(
            f"{option} {checkpoint} is not an imported checkpoint; give the folder that import-hf wrote (export-hf and "
            "import-hf a trained one first)"
        )
    check_divides(options, sizes.tensor, sizes.pipeline, checkpoint)
    check_exchange(sizes, options)


def load_frozen(
    checkpoint: Path,
    *,
    dtype: torch.dtype,
    sequence_parallel: bool,
    cp_comm_type: Sequence[str],
    transformer_impl: str,
    longest_trunk: int,
) -> FrozenReference:
    """Load the imported weights of ``checkpoint`` on Megatron's current parallel groups, as ``dtype``.

    Args:
        longest_trunk: of what it is to score, tokens.
    """
    model = load_model(
        checkpoint,
        checkpoint / RELEASE,
        read_identity(checkpoint).rope,
        dtype=dtype,
        sequence_parallel=sequence_parallel,
        cp_comm_type=cp_comm_type,
        transformer_impl=transformer_impl,
    )
    options = megatron_options(read_hf_config(checkpoint))
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    sequence_multiple = tensor if sequence_parallel else 1
    return FrozenReference(
        model, int(options["vocab_size"]), sequence_multiple, trunk_multiple(model.config, longest_trunk)
    )


def load_model(
    checkpoint: Path,
    weights: Path,
    rope: RopeParameters,
    *,
    dtype: torch.dtype,
    sequence_parallel: bool = False,
    cp_comm_type: Sequence[str] = ("p2p",),
    transformer_impl: str = "local",
) -> nn.Module:
    """This rank's part of the model of ``checkpoint``, without gradients, on Megatron's current parallel groups.

    Args:
        weights: the subfolder to take them from.
    """
    options = megatron_options(read_hf_config(checkpoint))
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    config = transformer_config(
        options,
        tensor=tensor,
        pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
        context=parallel_state.get_context_parallel_world_size(),
        sequence=sequence_parallel,
        cp_comm_type=cp_comm_type,
        transformer_impl=transformer_impl,
        dtype=dtype,
    )
    shape = ModelShape.of(options, rope, multiple=tensor)
    model: nn.Module = build_model(
        config,
        shape,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    model = model.to(dtype).to(torch.cuda.current_device()).eval().requires_grad_(False)
    state = load_checkpoint(model.sharded_state_dict(), str(weights))  # type: ignore[operator]
    model.load_state_dict(state, strict=False)
    return model


def score(reference: FrozenReference, trees: Sequence[ScoredTree]) -> list[Tensor]:
    """Score trees in one pipeline schedule of their own.

    Args:
        trees: conversations, each with the answers to score.

    Returns:
        For each tree the sum of each turn of its answers: float64 [K, answers], nats, on the CPU. Empty on all but the
        last pipeline stage.
    """

    def forward_step(data: Iterator[ScoredTree], model: nn.Module) -> Any:
        return _forward(next(data), model, reference)

    pipeline = parallel_state.get_pipeline_model_parallel_world_size()  # never interleaved, whatever the policy's is
    with torch.no_grad():
        return get_forward_backward_func(pp_size=pipeline, vp_size=None)(
            forward_step_func=forward_step,
            data_iterator=iter(trees),
            model=[reference.model],
            num_microbatches=len(trees),
            seq_length=0,  # ignored: stages exchange shapes (variable_seq_lengths)
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )


def _forward(scored: ScoredTree, model: nn.Module, reference: FrozenReference) -> Any:
    """(this stage's output, what the schedule calls with the last stage's)."""
    cp_group = parallel_state.get_context_parallel_group()
    conversation, answers = scored
    tree = tree_input(
        conversation,
        answers,
        nll_tokens=None,
        cp_rank=cp_group.rank(),
        cp_size=cp_group.size(),
        trunk_multiple=reference.trunk_multiple,
    )
    batch = pack([tree], reference.sequence_multiple).to(torch.cuda.current_device())

    def sums(token_logp_N: Tensor, non_loss_data: bool = True) -> Tensor:
        (logps,) = tree_logps(token_logp_N, batch.targets, cp_group)
        return logps.logp_BK.T.cpu()

    tp_group = parallel_state.get_tensor_model_parallel_group()
    return forward_pack(model, batch, reference.vocab_size, tp_group), sums
