"""A step or a weight that is not finite stops all ranks."""

from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks


def refusals(num_ranks: int, means: list[dict[str, float]], norm: float | None) -> list[str]:
    return run_ranks(check_on_a_rank, num_ranks, means, norm)


def check_on_a_rank(means: list[dict[str, float]], norm: float | None) -> str:
    import torch.distributed as dist

    from megatron_longpo.errors import UserError
    from megatron_longpo.non_finite import check_step

    try:
        check_step(7, means[dist.get_rank()], norm)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_all_ranks_stop(value: float) -> None:
    """The last pipeline stage alone has means."""
    other, last = refusals(2, [{}, {"loss": 1.0, "margin": value}], 1.0)
    assert last.startswith(f"step 7 is not finite (margin {value})") and "another rank" in other


def test_gradient_norm() -> None:
    assert "gradient norm nan" in refusals(1, [{"loss": 1.0}], nan)[0]


def test_what_goes_on() -> None:
    """A step that was left out has no norm; a turn that no pair has is 0 / 0."""
    assert refusals(1, [{"loss": 1.0, "by_turn/3/margin": nan}], None) == [""]


def larger_of(sizes: list[float]) -> float:
    import torch.distributed as dist

    from megatron_longpo.non_finite import check_step

    return check_step(7, {"loss": 1.0}, 1.0, sizes[dist.get_rank()])


def test_the_largest_of_all_ranks_comes_with_the_answer() -> None:
    """A byte of 80 GB counts: single precision would lose it."""
    assert run_ranks(larger_of, 2, [80e9 + 1.0, 3.0]) == [80e9 + 1.0] * 2


def check_model(value: float) -> Any:
    from megatron_longpo.errors import UserError
    from megatron_longpo.non_finite import check_weights

    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[1, 1] = value
    try:
        check_weights(3, [nn.Linear(1, 1), layer])
    except UserError as error:
        return str(error)
    return ""


def test_weights() -> None:
    assert run_ranks(check_model, 1, 1.0) == [""]
    assert run_ranks(check_model, 1, nan)[0].startswith("step 3: weight is not finite, nothing is saved")
