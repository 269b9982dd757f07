"""RMSprop with one state tensor a parameter, against torch's own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from megatron_longpo import platform

platform.activate(announce=False)  # before Megatron is imported, which looks for CUDA as it loads

from megatron_longpo.optimizer import RMSprop  # noqa: E402

NUM_STEPS = 20
SHAPES = [(7,), (5, 3), (2, 3, 4)]


def course(optimizer_class: type[Optimizer], **options: Any) -> list[list[Tensor]]:
    """The parameters after every one of 20 steps, in two groups, one with a learning rate of its own."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 3e-3}]
    optimizer = optimizer_class(groups, lr=1e-2, **options)
    steps = []
    for _ in range(NUM_STEPS):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        steps.append([parameter.detach().clone() for parameter in parameters])
    return steps


def largest_difference(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    pairs = zip(sum(ours, []), sum(theirs, []), strict=True)  # noqa: RUF017
    return max((a - b).abs().max().item() for a, b in pairs)


def test_equals_torch() -> None:
    """1e-6: parameters of size 1, fp32. Bias correction would divide the first steps by ten."""
    assert largest_difference(course(RMSprop), course(torch.optim.RMSprop)) < 1e-6
    # Adam without a first moment is RMSprop with bias correction: what must not pass.
    corrected = course(torch.optim.Adam, betas=(0.0, 0.99))
    assert largest_difference(course(RMSprop), corrected) > 0.1
