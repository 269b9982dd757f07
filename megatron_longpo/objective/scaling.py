"""Every factor between a pair's loss and the gradient that the optimizer sees, in one place.

Wanted: the gradient of the mean over the pairs of the global batch,

    L = (1 / n) * sum_p loss_p,        n = all pairs of all micro-batches of all data-parallel ranks.

Megatron-Core 0.19 with ``calculate_per_token_loss`` does, in this order:

1. ``schedules.py::forward_step_calc_loss`` takes (loss, num_tokens, report) from the loss function and, with
   ``calculate_per_token_loss``, neither divides by num_tokens nor by the number of micro-batches. Without it, it would
   average over micro-batches, wrong as soon as two of them hold different numbers of pairs.
2. autograd adds the micro-batches' gradients up in ``main_grad``.
3. ``distributed_data_parallel.py`` sets ``gradient_scaling_factor = 1.0``: gradients are *summed* over dp x cp.
4. ``finalize_model_grads.py`` all-reduces the schedules' total of num_tokens over dp x cp and multiplies every
   gradient by its inverse.

So with loss = sum of this micro-batch's loss_p, and num_tokens = this micro-batch's *pairs*, the gradient is exactly
that of L, for any split of the pairs over micro-batches and ranks. "Token" is only Megatron's name for the unit of the
mean. There is no factor left to multiply: tensor-, sequence- and pipeline-parallel ranks hold parts of one function,
and their mappings already add the parts up. Context-parallel ranks of one pair compute the same loss from completed
sums (model/targets.py), each differentiates it with respect to its own tokens, and step 3 adds these parts up. But
the pair is one pair: only the first of them counts it. Under loss scaling (fp16) ``schedules.py::backward_step``
multiplies the loss and the optimizer divides it out again.

Reports follow the same contract (``training.py::train_step`` and ``evaluate``): [sum, count], added up over
micro-batches and all-reduced over dp x cp, then divided. So every reported number is a mean over the pairs of the
global batch, or over those of its terms that were counted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def scale_for_megatron(
    loss_P: Tensor, names: Sequence[str], reports_PX2: Tensor, weight_P: Tensor, cp_rank: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What a loss function returns to Megatron for one micro-batch.

    Args:
        loss_P: the loss of each pair of the micro-batch.
        names: of the X numbers to log.
        reports_PX2: these numbers: of every pair a sum and the number of terms in it.
        weight_P: 1 for a pair that counts, 0 for one that only fills up a batch (the end of an evaluation).
        cp_rank: this rank's place among the context-parallel ranks that share these pairs.

    Returns:
        (sum of the losses: scalar, number of pairs: int32 scalar, name -> [sum, count] float64).
    """
    counted_P = weight_P if cp_rank == 0 else torch.zeros_like(weight_P)
    summed_X2 = (counted_P[:, None, None] * reports_PX2.detach()).sum(0)
    num_pairs = counted_P.sum()
    return (loss_P * weight_P).sum(), num_pairs.to(torch.int32), dict(zip(names, summed_X2, strict=True))
