"""The log-prob head equals log_softmax of full logits, forward and backward, for any chunk and vocabulary padding."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_longpo.model import logprob
from tests.ranks import run_ranks

LENGTH, HIDDEN, VOCAB, PADDED = 37, 16, 101, 104


def tensors() -> tuple[Tensor, ...]:
    """(hidden [S, 1, E], weight [padded V, E], rows, labels, weights of the sum)"""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(LENGTH, 1, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    rows = torch.tensor([0, 3, 4, 5, 11, 20, 35])
    labels = torch.tensor([0, 100, 51, 52, 7, 99, 51])
    return hidden, weight, rows, labels, torch.randn(len(rows), generator=generator)


def expected() -> tuple[Any, ...]:
    """float64 log-probs and gradients from the whole logits of the real vocabulary."""
    hidden, weight, rows, labels, mix = (x.double() if x.is_floating_point() else x for x in tensors())
    hidden.requires_grad_()
    weight.requires_grad_()
    logp = (hidden[:, 0] @ weight[:VOCAB].T).log_softmax(-1)[rows, labels]
    (logp * mix).sum().backward()
    return logp.detach(), hidden.grad, weight.grad


SWITCHES = list(itertools.product((False, True), (1, 4 * 104 * 3, 2**20)))
"""(sequence parallel, bytes of a chunk: 1, 3 or all rows)"""


def heads(num_parts: int) -> list[tuple[Any, ...]]:
    """On each rank, for all switches: log-probs, dHidden of the whole sequence, dWeight of this rank's rows."""
    return [_head(num_parts, *switches) for switches in SWITCHES]


def _head(num_parts: int, sequence_parallel: bool, chunk_bytes: int) -> tuple[Any, ...]:
    logprob.CHUNK_BYTES = chunk_bytes
    group = dist.group.WORLD
    hidden, weight, rows, labels, mix = tensors()
    part = PADDED // num_parts
    weight = weight[group.rank() * part : (group.rank() + 1) * part].clone().requires_grad_()
    hidden.requires_grad_()
    given = hidden
    if sequence_parallel:
        padding = -LENGTH % num_parts
        given = scatter_to_sequence_parallel_region(torch.nn.functional.pad(hidden, (0, 0, 0, 0, 0, padding)), group)
    logp = logprob.token_logprobs(given, weight, rows, labels, VOCAB, group, sequence_parallel)
    (logp * mix).sum().backward()
    return logp.detach(), hidden.grad, weight.grad


@pytest.mark.ranks
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_equals_log_softmax(num_parts: int) -> None:
    """1e-5: fp32 against float64. With 4 parts the last rank's rows end in padding."""
    by_rank = run_ranks(heads, num_parts, num_parts)
    logp, grad_hidden, grad_weight = expected()
    for index in range(len(SWITCHES)):
        results = [rank[index] for rank in by_rank]
        for rank_logp, rank_grad_hidden, _ in results:
            torch.testing.assert_close(rank_logp.double(), logp, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(rank_grad_hidden.double(), grad_hidden, rtol=1e-5, atol=1e-5)
        whole = torch.cat([rank_grad_weight for _, _, rank_grad_weight in results])
        torch.testing.assert_close(whole.double(), grad_weight, rtol=1e-5, atol=1e-5)
        assert whole[VOCAB:].abs().max() == 0, "padding rows get no probability and no gradient"


@pytest.mark.ranks
def test_main_grad_is_added_to_once() -> None:
    """With Megatron's main_grad the gradient goes there in fp32, on top of what is in it, and DDP is told so."""
    (results,) = run_ranks(_into_main_grad, 1)
    main_grad, flag = results
    torch.testing.assert_close(main_grad.double(), expected()[2] + 1.0, rtol=1e-5, atol=1e-5)
    assert flag is True


def _into_main_grad() -> tuple[Tensor, bool]:
    hidden, weight, rows, labels, mix = tensors()
    weight.requires_grad_()
    weight.main_grad = torch.ones_like(weight)
    weight.grad_added_to_main_grad = False
    logp = logprob.token_logprobs(hidden, weight, rows, labels, VOCAB, dist.group.WORLD, False)
    (logp * mix).sum().backward()
    return weight.main_grad, weight.grad_added_to_main_grad


class Products(TorchDispatchMode):
    """Notes the matrix products of what runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.name():
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def test_products_of_half_precision_are_summed_in_fp32_on_a_device() -> None:
    """Neither the logits nor a chunk's part of the weight's gradient is rounded to bf16, nor is the latter a tensor."""
    hidden, grad = (torch.empty(8, size, dtype=torch.bfloat16, device="meta") for size in (HIDDEN, VOCAB))
    weight = torch.empty(PADDED, HIDDEN, dtype=torch.bfloat16, device="meta")
    weight.main_grad = torch.empty(PADDED, HIDDEN, device="meta")  # type: ignore[attr-defined]
    weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    with Products() as products:
        logits = logprob._logits(hidden, weight, VOCAB)
        logprob._WeightGradient(weight).add(grad, hidden)
    assert (logits.shape, logits.dtype) == ((8, VOCAB), torch.float32)
    assert products.found == ["aten::mm.dtype", "aten::addmm.dtype_out"]
