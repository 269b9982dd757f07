"""One micro-batch, which is one pair or a few: from the dataset's samples to the loss that Megatron differentiates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.model.forward import PackInput, forward_pack, pack, pair_input
from megatron_longpo.model.targets import pair_logps
from megatron_longpo.objective.longpo import Objective, margin_by_turn, pair_loss, reference_context
from megatron_longpo.objective.scaling import scale_for_megatron
from megatron_longpo.step_metrics import PairReport, reports

Sample = dict[str, Tensor]
"""What data/dataset.py yields for a pair, as tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step needs to know; nothing here changes during a run."""

    vocab_size: int
    """Tokens of the real vocabulary."""
    sequence_multiple: int
    """A rank's share of a micro-batch is padded to a multiple of this: the tensor-parallel size under sequence
    parallelism, else 1."""
    objective: Objective
    keep_attention: bool = False
    """Full recomputation takes attention's output from the first forward pass."""
    nll_over_all: bool
    """NLL over every predicted token of trunk + chosen branch, or over chosen response tokens only."""
    check_finite: bool
    """Stop on a NaN or infinite loss."""
    max_turns: int
    """Most turns that a pair of the dataset has: how many there are metrics for."""
    length_buckets: tuple[int, ...]
    """Upper bounds, in tokens of the trunk, of the lengths there are metrics for."""


def forward_step(data: Iterator[Sequence[Sample]], model: nn.Module, *, settings: StepSettings) -> Any:
    """Run one micro-batch through this pipeline stage.

    Args:
        data: yields micro-batches.

    Returns:
        (the stage's output, the loss function that Megatron calls on the last stage).
    """
    samples = next(data)
    cp_group = parallel_state.get_context_parallel_group()
    pairs = [
        pair_input(
            *(sample[name] for name in ("trunk", "chosen", "rejected", "chosen_spans", "rejected_spans")),
            nll_over_all=settings.nll_over_all,
            cp_rank=cp_group.rank(),
            cp_size=cp_group.size(),
        )
        for sample in samples
    ]
    batch = pack(pairs, settings.sequence_multiple).to(torch.cuda.current_device())
    tp_group = parallel_state.get_tensor_model_parallel_group()
    output = forward_pack(model, batch, settings.vocab_size, tp_group, settings.keep_attention)
    return output, partial(loss_function, samples=samples, batch=batch, cp_group=cp_group, settings=settings)


def loss_function(
    token_logp_N: Tensor,
    *,
    samples: Sequence[Sample],
    batch: PackInput,
    cp_group: ProcessGroup,
    settings: StepSettings,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective of each pair and the numbers to report, scaled for Megatron (objective/scaling.py)."""
    pairs = pair_reports(token_logp_N, samples, batch, cp_group, settings.objective)
    losses_P = torch.stack([pair.result.loss for pair in pairs])
    if settings.check_finite:
        _check_finite(losses_P.sum())
    weight_P = torch.stack([sample["weight"] for sample in samples]).to(token_logp_N.device)
    reported = reports(pairs, batch.layout, settings.max_turns, settings.length_buckets)
    return scale_for_megatron(losses_P, reported, weight_P, cp_group.rank())


def pair_reports(
    token_logp_N: Tensor,
    samples: Sequence[Sample],
    batch: PackInput,
    cp_group: ProcessGroup,
    objective: Objective,
) -> list[PairReport]:
    """Loss and log-probs of each pair; no pair's depend on another's."""
    found = []
    for sample, policy in zip(samples, pair_logps(token_logp_N, batch.targets, cp_group), strict=True):
        logp_K = {"policy_chosen_logp": policy.chosen_K, "policy_rejected_logp": policy.rejected_K}
        margin_K = None
        if reference_context(objective.name) is not None:
            for name in ("reference_chosen_logp", "reference_rejected_logp"):
                logp_K[name] = sample[name].to(token_logp_N.device)
            margin_K = margin_by_turn(*logp_K.values())
        found.append(PairReport(pair_loss(margin_K, policy.nll, objective), policy.nll, margin_K, logp_K))
    return found


def _check_finite(loss: Tensor) -> None:
    """Megatron's own check, as its pretrain_gpt.py applies it: a bad loss is tried again, then stops the run."""
    for reject, name in ((torch.isnan, "NaN"), (torch.isinf, "infinity")):
        get_rerun_state_machine().validate_result(
            result=loss.detach(),
            rejection_func=reject,
            message=f"found {name} in the loss of a pair",
            tolerance=0.0,
            fatal=True,
        )
