"""What the branches send around: counted, equal to the formula of model/branches.py, independent of the trunk."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longpo.model.branches import branches_backward, branches_forward
from megatron_longpo.model.layout import tree_layout
from megatron_longpo.model.tasks import run
from tests.ranks import run_ranks

HEADS, GROUPS, DIM, BYTES = 4, 2, 16, 4
BRANCHES = 48


def received(trunk: int) -> tuple[int, int]:
    """Bytes that this rank receives in one layer's (forward, backward), counted at the collectives."""
    group = dist.distributed_c10d._get_default_group()
    layout = tree_layout(trunk, (30, BRANCHES - 30), cp_size=group.size())
    q, k, v = (torch.randn(1, n, layout.rank_branches, DIM) for n in (HEADS, GROUPS, GROUPS))
    trunk_k, trunk_v = (torch.randn(1, GROUPS, layout.rank_trunk, DIM) for _ in range(2))
    counted = [0]

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(output: Tensor, *rest: Any, **kwargs: Any) -> Any:
            counted[-1] += output.nbytes * (group.size() - 1) // group.size()  # one part of it is the rank's own
            return collective(output, *rest, **kwargs)

        return call

    for name in ("all_gather_into_tensor", "all_to_all_single"):
        setattr(dist, name, counting(getattr(dist, name)))
    for name in ("all_reduce", "reduce_scatter_tensor", "batch_isend_irecv", "broadcast"):
        setattr(dist, name, None)  # nothing else is sent
    inputs = (q, k, v, trunk_k, trunk_v)
    out, lse = run(branches_forward(*inputs, layout, group, 0.25))
    counted.append(0)
    run(branches_backward(torch.randn_like(out), *inputs, out, lse, layout, group, 0.25))
    return counted[0], counted[1]


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_bytes_received(num_ranks: int) -> None:
    shared = BRANCHES * (num_ranks - 1) // num_ranks
    forward = shared * ((HEADS + 2 * GROUPS) * DIM * BYTES + HEADS * DIM * BYTES + 4 * HEADS)
    backward = shared * ((3 * HEADS + 2 * GROUPS) * DIM * BYTES + 4 * HEADS + (HEADS + 2 * GROUPS) * DIM * BYTES)
    for trunk in (100, 5000):
        assert run_ranks(received, num_ranks, trunk) == [(forward, backward)] * num_ranks
