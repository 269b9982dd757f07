"""RMSprop with one state tensor a parameter, against torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from megatron_longpo.optimizer import RMSprop

NUM_STEPS = 20
SHAPES = [(7,), (5, 3), (2, 3, 4)]


def course(optimizer_class: type[Optimizer], is_reloaded: bool = False, **options: Any) -> list[list[Tensor]]:
    """The parameters after every one of 20 steps, in two groups, one with a learning rate of its own."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]

    def make() -> Optimizer:
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 3e-3}]
        return optimizer_class(groups, lr=1e-2, **options)

    optimizer, steps = make(), []
    for step in range(NUM_STEPS):
        if is_reloaded and step == NUM_STEPS // 2:
            state = optimizer.state_dict()
            optimizer = make()
            optimizer.load_state_dict(state)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        steps.append([parameter.detach().clone() for parameter in parameters])
    return steps


def largest_difference(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    pairs = (pair for step in zip(ours, theirs, strict=True) for pair in zip(*step, strict=True))
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.9, "eps": 1e-3}, {"weight_decay": 0.1}], ids=str)
def test_equals_torch(options: dict[str, float]) -> None:
    """1e-6: parameters of size 1 in fp32."""
    assert largest_difference(course(RMSprop, **options), course(torch.optim.RMSprop, **options)) < 1e-6


def test_bias_correction_would_show() -> None:
    """Adam without a first moment is RMSprop with bias correction, whose first steps are ten times shorter."""
    corrected = course(torch.optim.Adam, betas=(0.0, 0.99))
    assert largest_difference(course(RMSprop), corrected) > 0.1


def test_goes_on_after_its_state_is_loaded() -> None:
    assert largest_difference(course(RMSprop, is_reloaded=True), course(RMSprop)) == 0.0


def test_one_state_tensor_a_parameter() -> None:
    moved, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = RMSprop([moved, frozen])
    moved.grad = torch.ones(3)
    optimizer.step()
    assert {name: value.shape for name, value in optimizer.state[moved].items()} == {"square_avg": (3,)}
    assert frozen not in optimizer.state
