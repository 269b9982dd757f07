"""One micro-batch, which is one pair: from the dataset's sample to the loss that Megatron differentiates."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.metrics import token_reports
from megatron_longpo.model.forward import PairInput, forward_pair, pair_input
from megatron_longpo.model.targets import pair_logps
from megatron_longpo.objective.longpo import Objective, margin_by_turn, pair_loss, reference_context
from megatron_longpo.objective.scaling import scale_for_megatron

Sample = dict[str, Tensor]
"""What data/dataset.py yields for a pair, as tensors without the batch dim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step needs to know; nothing here changes during a run."""

    vocab_size: int
    """Tokens of the real vocabulary."""
    sequence_multiple: int
    """A rank's share of a sequence is padded to a multiple of this: the tensor-parallel size under sequence
    parallelism, else 1."""
    objective: Objective
    keep_attention: bool = False
    """Full recomputation takes attention's output from the first forward pass."""
    nll_over_all: bool
    """NLL over every predicted token of trunk + chosen branch, or over chosen response tokens only."""
    check_finite: bool
    """Stop on a NaN or infinite loss."""


def forward_step(data: Iterator[Sample], model: nn.Module, *, settings: StepSettings) -> Any:
    """Run one pair through this pipeline stage.

    Args:
        data: yields samples as the DataLoader collates them, with a leading batch dim of 1.

    Returns:
        (the stage's output, the loss function that Megatron calls on the last stage).
    """
    sample = {name: value.squeeze(0) for name, value in next(data).items()}
    cp_group = parallel_state.get_context_parallel_group()
    pair = pair_input(
        *(sample[name] for name in ("trunk", "chosen", "rejected", "chosen_spans", "rejected_spans")),
        nll_over_all=settings.nll_over_all,
        multiple=settings.sequence_multiple,
        cp_rank=cp_group.rank(),
        cp_size=cp_group.size(),
    ).to(torch.cuda.current_device())
    tp_group = parallel_state.get_tensor_model_parallel_group()
    output = forward_pair(model, pair, settings.vocab_size, tp_group, settings.keep_attention)
    return output, partial(loss_function, sample=sample, pair=pair, cp_group=cp_group, settings=settings)


def loss_function(
    token_logp_N: Tensor, *, sample: Sample, pair: PairInput, cp_group: ProcessGroup, settings: StepSettings
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective of one pair and the numbers to report, scaled for Megatron (objective/scaling.py)."""
    policy = pair_logps(token_logp_N, pair.targets, cp_group)
    by_turn = {"policy_chosen_logp": policy.chosen_K, "policy_rejected_logp": policy.rejected_K}
    margin_K = None
    if reference_context(settings.objective.name) is not None:
        for name in ("reference_chosen_logp", "reference_rejected_logp"):
            by_turn[name] = sample[name].to(token_logp_N.device)
        margin_K = margin_by_turn(*by_turn.values())
    result = pair_loss(margin_K, policy.nll, settings.objective)
    if settings.check_finite:
        _check_finite(result.loss)
    layout = pair.layout
    tokens = {"trunk": layout.trunk, "branches": layout.chosen + layout.rejected, "padding": layout.padding}
    reports = {
        "loss": result.loss,
        "nll": policy.nll,
        **result.reports,
        **{name: logp_K.sum() for name, logp_K in by_turn.items()},
        **{name: result.loss.new_tensor(count) for name, count in token_reports(tokens).items()},
    }
    reports = {name: value.unsqueeze(0) for name, value in reports.items()}
    weight_P = sample["weight"].to(token_logp_N.device).unsqueeze(0)
    return scale_for_megatron(result.loss.unsqueeze(0), reports, weight_P, cp_group.rank())


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
