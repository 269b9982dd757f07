"""objective/scaling.py under Megatron's contract, step by step as its docstring lists it, on numbers done by hand."""

from typing import Any

import torch
from torch import Tensor

from megatron_longpo.objective.scaling import scale_for_megatron

# Two data-parallel ranks with two micro-batches each, of unequal numbers of pairs: (loss per unit of w, weight) a pair.
# The pair of weight 0 only fills up a batch. Mean over the other seven: (1 + 2 + 3 + 4 + 5 + 6 + 7) / 7 = 4.
RANKS = [
    [([1.0, 2.0], [1.0, 1.0]), ([3.0], [1.0])],
    [([4.0, 5.0, 6.0], [1.0, 1.0, 1.0]), ([7.0, 100.0], [1.0, 0.0])],
]
MEAN = 4.0


def step() -> tuple[float, dict[str, float]]:
    """(gradient that the optimizer sees, reported means) of loss_p = w * number, at w = 1.

    calculate_per_token_loss: the sum of all micro-batches' and ranks' gradients, times 1 / (sum of all counts).
    """
    w = torch.ones((), requires_grad=True)
    count, reported = 0, dict[str, Any]()
    for micro_batches in RANKS:
        for numbers, weights in micro_batches:
            loss_P = w * torch.tensor(numbers)
            terms_P12 = torch.stack((loss_P, torch.ones_like(loss_P)), dim=1)[:, None]
            loss, num_pairs, reports = scale_for_megatron(loss_P, ["loss"], terms_P12, torch.tensor(weights), cp_rank=0)
            loss.backward()  # adds to w.grad, as main_grad and then DDP's sum do
            assert num_pairs.dtype == torch.int32
            count += int(num_pairs)
            for name, sum_and_count in reports.items():
                assert not sum_and_count.requires_grad
                reported[name] = reported.get(name, 0) + sum_and_count
    assert isinstance(w.grad, Tensor)
    return (w.grad / count).item(), {name: (total / num).item() for name, (total, num) in reported.items()}


def test_the_gradient_is_that_of_the_mean_over_the_global_batch() -> None:
    assert step()[0] == MEAN


def test_reports_are_means_over_the_global_batch() -> None:
    assert step()[1] == {"loss": MEAN}
