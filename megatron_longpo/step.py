"""One micro-batch, which is one pair or a few: through the model, to the loss that Megatron differentiates."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longpo.data.trees import TreeKind
from megatron_longpo.micro_batch import MicroBatch, Sample, conversations
from megatron_longpo.model.forward import forward_pack
from megatron_longpo.model.targets import TreeLogps, tree_logps
from megatron_longpo.non_finite import StepLosses
from megatron_longpo.objective.objectives import Objective
from megatron_longpo.objective.preferences import AnswerLogps, Reference
from megatron_longpo.objective.scaling import scale_for_megatron
from megatron_longpo.step_metrics import PairReport, reports
from megatron_longpo.step_settings import StepSettings


def forward_step(
    data: Iterator[MicroBatch], model: nn.Module, *, settings: StepSettings, losses: StepLosses | None = None
) -> Any:
    """Run one micro-batch through this pipeline stage.

    Args:
        data: yields micro-batches.
        losses: is told the losses of the pairs.

    Returns:
        (the stage's output, the loss function that Megatron calls on the last stage).
    """
    batch = next(data).to(torch.cuda.current_device())
    tp_group = parallel_state.get_tensor_model_parallel_group()
    output = forward_pack(model, batch.packed, settings.vocab_size, tp_group, settings.keep_attention)
    cp_group = parallel_state.get_context_parallel_group()
    return output, partial(loss_function, batch=batch, cp_group=cp_group, settings=settings, losses=losses)


def loss_function(
    token_logp_N: Tensor,
    *,
    batch: MicroBatch,
    cp_group: ProcessGroup,
    settings: StepSettings,
    losses: StepLosses | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective of each pair and the numbers to report, scaled for Megatron (objective/scaling.py)."""
    pairs = pair_reports(token_logp_N, batch, cp_group, settings)
    losses_P = torch.stack([pair.loss for pair in pairs])
    if losses is not None:
        losses.add(losses_P, (int(sample["pair_index"]) for sample in batch.samples))
    weight_P = torch.stack([sample["weight"] for sample in batch.samples])
    reported = reports(pairs, batch.packed.layout.tail, settings.max_turns, settings.length_buckets)
    return scale_for_megatron(losses_P, *reported, weight_P, cp_group.rank())


def pair_reports(
    token_logp_N: Tensor, batch: MicroBatch, cp_group: ProcessGroup, settings: StepSettings
) -> list[PairReport]:
    """Loss and log-probs of each pair; no pair's depend on another's."""
    objective, packed = settings.objective, batch.packed
    trees = iter(zip(packed.layout.trees, tree_logps(token_logp_N, packed.targets, cp_group), strict=True))
    found: list[PairReport] = []
    for sample in batch.samples:
        numbers = [(kind, len(conversations(sample, kind))) for kind in objective.reads]
        own = [(kind, list(islice(trees, number))) for kind, number in numbers]
        policy = {key: logps for kind, its in own for key, logps in _answers(kind, [logps for _, logps in its])}
        reference = _reference(sample, objective)
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


def _reference(sample: Sample, objective: Objective) -> Reference:
    return {
        (kind.context, answer): sample[f"reference_{kind.context}_{answer}"]
        for kind in objective.reference
        for answer in kind.answers
    }
