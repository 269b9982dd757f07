"""The log-prob head equals log_softmax of full logits, forward and backward, for any chunk size and vocabulary padding."""

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region

from megatron_longpo.model import logprob
from tests.ranks import run_ranks

LENGTH, HIDDEN, VOCAB, PADDED = 37, 16, 101, 104


def tensors(dtype=torch.float32):
    """(hidden [S, 1, E], weight [padded V, E], rows, labels, weights of the sum)"""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(LENGTH, 1, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype)
    rows = torch.tensor([0, 3, 4, 5, 11, 20, 35])
    labels = torch.tensor([0, 100, 51, 52, 7, 99, 51])
    return hidden, weight, rows, labels, torch.randn(len(rows), generator=generator)


def expected():
    """float64 log-probs and gradients from the whole logits of the real vocabulary."""
    hidden, weight, rows, labels, mix = (x.double() if x.is_floating_point() else x for x in tensors())
    hidden.requires_grad_()
    weight.requires_grad_()
    logp = (hidden[:, 0] @ weight[:VOCAB].T).log_softmax(-1)[rows, labels]
    (logp * mix).sum().backward()
    return logp.detach(), hidden.grad, weight.grad


def head(num_parts: int, sequence_parallel: bool, chunk_bytes: int):
    """On each rank: log-probs, dHidden of the whole sequence, dWeight of this rank's rows."""
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


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 104 * 3, 2**20])
def test_equals_log_softmax(num_parts, sequence_parallel, chunk_bytes):
    """1e-5: fp32 against float64. With 4 parts the last rank's rows end in padding; a chunk is 1, 3 or all rows."""
    results = run_ranks(head, num_parts, num_parts, sequence_parallel, chunk_bytes)
    logp, grad_hidden, grad_weight = expected()
    for rank_logp, rank_grad_hidden, _ in results:
        torch.testing.assert_close(rank_logp.double(), logp, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rank_grad_hidden.double(), grad_hidden, rtol=1e-5, atol=1e-5)
    whole = torch.cat([rank_grad_weight for _, _, rank_grad_weight in results])
    torch.testing.assert_close(whole.double(), grad_weight, rtol=1e-5, atol=1e-5)
    assert whole[VOCAB:].abs().max() == 0, "padding rows get no probability and no gradient"


def test_main_grad_is_added_to_once():
    """With Megatron's main_grad the gradient goes there in fp32, on top of what is in it, and DDP is told so."""
    (results,) = run_ranks(_into_main_grad, 1)
    main_grad, flag = results
    torch.testing.assert_close(main_grad.double(), expected()[2] + 1.0, rtol=1e-5, atol=1e-5)
    assert flag is True


def _into_main_grad():
    hidden, weight, rows, labels, mix = tensors()
    weight.requires_grad_()
    weight.main_grad = torch.ones_like(weight)
    weight.grad_added_to_main_grad = False
    logp = logprob.token_logprobs(hidden, weight, rows, labels, VOCAB, dist.group.WORLD, False)
    (logp * mix).sum().backward()
    return weight.main_grad, weight.grad_added_to_main_grad
