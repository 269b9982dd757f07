"""One micro-batch, which is one pair or a few: from the dataset's samples to the loss that Megatron differentiates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.data.trees import TreeKind
from megatron_longpo.model.forward import PackInput, TreeInput, forward_pack, pack, tree_input
from megatron_longpo.model.targets import NllTokens, TreeLogps, tree_logps
from megatron_longpo.objective.objectives import Objective
from megatron_longpo.objective.preferences import AnswerLogps, Coefficients, Reference
from megatron_longpo.objective.scaling import scale_for_megatron
from megatron_longpo.step_metrics import PairReport, reports

Sample = Mapping[str, Any]
"""What data/dataset.py yields for a pair, as tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step needs to know; nothing here changes during a run."""

    vocab_size: int
    """Tokens of the real vocabulary."""
    sequence_multiple: int
    """A rank's tokens of a micro-batch are padded to a multiple of this: the tensor-parallel size under sequence
    parallelism, else 1."""
    objective: Objective
    coefficients: Coefficients
    keep_attention: bool = False
    """Full recomputation takes attention's output from the first forward pass."""
    nll_tokens: NllTokens
    """Which tokens the NLL counts."""
    check_finite: bool
    """Stop on a NaN or infinite loss."""
    max_turns: int
    """Most turns that a pair of the dataset has: how many there are metrics for."""
    length_buckets: tuple[int, ...]
    """Upper bounds, in tokens of the long trunk, of the lengths there are metrics for."""


def forward_step(data: Iterator[Sequence[Sample]], model: nn.Module, *, settings: StepSettings) -> Any:
    """Run one micro-batch through this pipeline stage.

    Args:
        data: yields micro-batches.

    Returns:
        (the stage's output, the loss function that Megatron calls on the last stage).
    """
    samples = next(data)
    cp_group = parallel_state.get_context_parallel_group()
    trees = [tree for sample in samples for tree in pair_trees(sample, settings, cp_group)]
    batch = pack(trees, settings.sequence_multiple).to(torch.cuda.current_device())
    tp_group = parallel_state.get_tensor_model_parallel_group()
    output = forward_pack(model, batch, settings.vocab_size, tp_group, settings.keep_attention)
    return output, partial(loss_function, samples=samples, batch=batch, cp_group=cp_group, settings=settings)


def pair_trees(sample: Sample, settings: StepSettings, cp_group: ProcessGroup) -> list[TreeInput]:
    """Make the trees of a pair that the objective reads, in its order: of short contexts one a turn."""
    return [
        tree_input(
            conversation,
            kind.answers,
            nll_tokens=settings.nll_tokens if kind.context == settings.objective.nll_context else None,
            cp_rank=cp_group.rank(),
            cp_size=cp_group.size(),
        )
        for kind in settings.objective.reads
        for conversation in conversations(sample, kind)
    ]


def conversations(sample: Sample, kind: TreeKind) -> Sequence[Mapping[str, Tensor]]:
    """The conversations of a pair on that context: one with all turns, or one a turn."""
    return [sample["long"]] if kind.context == "long" else sample["short"]


def loss_function(
    token_logp_N: Tensor,
    *,
    samples: Sequence[Sample],
    batch: PackInput,
    cp_group: ProcessGroup,
    settings: StepSettings,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective of each pair and the numbers to report, scaled for Megatron (objective/scaling.py)."""
    pairs = pair_reports(token_logp_N, samples, batch, cp_group, settings)
    losses_P = torch.stack([pair.loss for pair in pairs])
    if settings.check_finite:
        _check_finite(losses_P.sum())
    weight_P = torch.stack([sample["weight"] for sample in samples]).to(token_logp_N.device)
    reported = reports(pairs, batch.layout.tail, settings.max_turns, settings.length_buckets)
    return scale_for_megatron(losses_P, reported, weight_P, cp_group.rank())


def pair_reports(
    token_logp_N: Tensor, samples: Sequence[Sample], batch: PackInput, cp_group: ProcessGroup, settings: StepSettings
) -> list[PairReport]:
    """Loss and log-probs of each pair; no pair's depend on another's."""
    objective = settings.objective
    trees = iter(zip(batch.layout.trees, tree_logps(token_logp_N, batch.targets, cp_group), strict=True))
    found: list[PairReport] = []
    for sample in samples:
        numbers = [(kind, len(conversations(sample, kind))) for kind in objective.reads]
        own = [(kind, list(islice(trees, number))) for kind, number in numbers]
        policy = {key: logps for kind, its in own for key, logps in _answers(kind, [logps for _, logps in its])}
        reference = _reference(sample, objective, token_logp_N.device)
        in_nll = [logps for _, its in own for _, logps in its if logps.num_in_nll]
        nll = torch.stack([logps.nll for logps in in_nll]).sum() / sum(logps.num_in_nll for logps in in_nll)
        loss, terms = objective.loss(policy, reference, nll, settings.coefficients)
        layouts = [layout for _, its in own for layout, _ in its]
        found.append(PairReport(loss, nll, terms, policy, reference, layouts))
    return found


def _answers(kind: TreeKind, trees: Sequence[TreeLogps]) -> Iterator[tuple[Any, AnswerLogps]]:
    """The turns of every answer, of one tree with all of them or of one tree a turn."""
    for branch, answer in enumerate(kind.answers):
        logp_K = torch.cat([tree.logp_BK[branch] for tree in trees])
        yield (kind.context, answer), AnswerLogps(logp_K, torch.cat([tree.num_tokens_BK[branch] for tree in trees]))


def _reference(sample: Sample, objective: Objective, device: torch.device) -> Reference:
    return {
        (kind.context, answer): sample[f"reference_{kind.context}_{answer}"].to(device)
        for kind in objective.reference
        for answer in kind.answers
    }


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
