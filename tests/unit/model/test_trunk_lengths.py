"""A kernel that plans for every length meets few lengths: trunks are padded, and branches are another kernel's."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_longpo.model import kernels
from megatron_longpo.model.attention import _TreeAttention, tree_attention, trunk_exchange
from megatron_longpo.model.kernel_calls import KERNELS, Kernel
from megatron_longpo.model.kernels import MOST_LENGTHS, choose, trunk_multiple, use_only
from megatron_longpo.model.layout import PackLayout, pack_layout, tree_layout
from tests.ranks import run_ranks

LONGEST = 40_000
BY_NAME = {kernel.name: kernel for kernel in KERNELS}


@pytest.fixture(autouse=True)
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels.platform, "is_cpu", lambda: True)
    choose.cache_clear()
    yield
    use_only("auto")


def planning(seen: set[tuple[int, int, bool]]) -> Kernel:
    """The CPU's kernel as one that plans for every length; notes the shapes that it is called with."""
    right = BY_NAME["cpu"]

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        seen.add((q.shape[2], k.shape[2], causal))
        return right.forward(q, k, v, causal, scale)

    def backward(grad: Tensor, q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        seen.add((q.shape[2], k.shape[2], rest[-2]))
        return right.backward(grad, q, k, *rest)

    return replace(right, name="planning", forward=forward, backward=backward, plans_per_length=True)


def options(impl: str = "local") -> Any:
    return SimpleNamespace(
        transformer_impl=impl, params_dtype=torch.float32, num_attention_heads=2, num_query_groups=1, kv_channels=4
    )


def lengths_met(num_ranks_expected: int) -> tuple[list[tuple[int, int, bool]], int]:
    """Shapes that reach the planning kernel from 200 trees of all lengths; and the number of real trunk lengths."""
    size = torch.distributed.get_world_size()
    assert size == num_ranks_expected
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
    seen: set[tuple[int, int, bool]] = set()
    kernels.KERNELS = (planning(seen), BY_NAME["cpu"])
    choose.cache_clear()
    multiple = trunk_multiple(options(), 1500)
    seen.clear()  # of the choice
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 1500, (60,), generator=draw).tolist()
    for trunk in lengths:
        branches = torch.randint(1, 40, (2,), generator=draw).tolist()
        layout = pack_layout([tree_layout(trunk, branches, size, multiple)])
        attend_there_and_back(layout, groups)
    return sorted(seen), len(set(lengths))


def attend_there_and_back(layout: PackLayout, groups: ProcessGroupCollection) -> None:
    leaves = [torch.randn(1, heads, layout.length, 4, requires_grad=True) for heads in (2, 1, 1)]
    rest = (layout, trunk_exchange("p2p", groups), groups.cp, 0.5)
    out = _TreeAttention.apply(*leaves, *tree_attention(*leaves, *rest), *rest)
    out.sum().backward()


@pytest.mark.parametrize("num_ranks, blocks", [(1, 1), (2, 3)])
def test_the_shapes_of_a_run_are_few(num_ranks: int, blocks: int) -> None:
    """128, 256, ... 1,536 tokens: twelve at most for each kind of block (trunk.py), of more than fifty trunks."""
    found = run_ranks(lengths_met, num_ranks, num_ranks)
    for shapes, num_real in found:
        assert num_real > 50
        assert 0 < len(shapes) <= 12 * blocks
        assert all(queries % (128 // (2 * num_ranks)) == 0 for queries, _, _ in shapes)


@pytest.mark.parametrize("longest, multiple", [(1, 128), (128, 128), (16_384, 128), (16_385, 256), (131_072, 1024)])
def test_how_much_padding(longest: int, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 128 lengths; padding below a tile or a 128th of the longest trunk."""
    monkeypatch.setattr(kernels, "KERNELS", (planning(set()), BY_NAME["cpu"]))
    assert trunk_multiple(options(), longest) == multiple
    assert len({-(-trunk // multiple) for trunk in range(1, longest + 1)}) <= MOST_LENGTHS
    assert multiple <= max(128, 2 * longest / 128)


def test_none_where_no_length_is_planned_for() -> None:
    assert trunk_multiple(options(), LONGEST) == 1
    assert trunk_multiple(options("transformer_engine"), LONGEST) == 384


def test_another_kernel_for_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "KERNELS", (planning(set()), BY_NAME["cpu"], BY_NAME["plain"]))
    rest = (torch.device("cpu"), torch.float32, 4, 2)
    for asked, trunk, branches in (
        ("auto", "planning", "cpu"),
        ("planning", "planning", "cpu"),
        ("plain", "plain", "plain"),
    ):
        use_only(asked)
        assert (choose(*rest).name, choose(*rest, any_length=True).name) == (trunk, branches)


def test_cudnn_plans() -> None:
    assert [kernel.name for kernel in KERNELS if kernel.plans_per_length] == ["cudnn"]
