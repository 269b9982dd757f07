"""Log-probabilities of given tokens from hidden states, without the [S, V] logits.

Only the scored rows are projected, a chunk of tokens at a time; the backward pass projects each chunk again. So beyond
its inputs and the weight's gradient the head needs memory for one chunk, at any sequence length.

Letters in shapes: S = tokens, N = scored rows, C = rows of a chunk, V = vocabulary rows of this tensor-parallel rank,
E = hidden size.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.chunk_size import CHUNK_BYTES
from megatron_longpo.model.kernel_calls import HALF


def token_logprobs(
    hidden_S1E: Tensor,
    weight_VE: Tensor,
    rows_N: Tensor,
    labels_N: Tensor,
    vocab_size: int,
    tp_group: ProcessGroup,
    sequence_parallel: bool,
) -> Tensor:
    """Compute the log-probability of each label given its row: fp32 [N], nats, the same on every tensor-parallel rank.

    Args:
        hidden_S1E: the decoder's output; with ``sequence_parallel`` this rank's part of the sequence.
        weight_VE: this rank's rows of the output layer (or of the tied embedding), padding rows included.
        rows_N, labels_N: int64 positions in the whole sequence, and token ids.
        vocab_size: tokens of the real vocabulary; the rows beyond it only pad the weight and get no probability.
    """
    # Both mappings complete dHidden over the tensor-parallel group in the backward pass, as Megatron's
    # ColumnParallelLinear does (megatron/core/tensor_parallel/layers.py): each rank knows only its vocabulary's share.
    if sequence_parallel:
        hidden_S1E = gather_from_sequence_parallel_region(hidden_S1E, group=tp_group)
    else:
        hidden_S1E = copy_to_tensor_model_parallel_region(hidden_S1E, group=tp_group)
    first = tp_group.rank() * weight_VE.shape[0]
    num_real = max(0, min(weight_VE.shape[0], vocab_size - first))
    return _TokenLogprobs.apply(hidden_S1E.squeeze(1), weight_VE, rows_N, labels_N - first, num_real, tp_group)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SE: Tensor,
        weight_VE: Tensor,
        rows_N: Tensor,
        local_labels_N: Tensor,
        num_real: int,
        tp_group: ProcessGroup,
    ) -> Tensor:
        """log p = logit[label] - logsumexp(logits); each rank finds its part of both, all-reduces of [N] join them."""
        lse_N = torch.full(rows_N.shape, -torch.inf, dtype=torch.float32, device=hidden_SE.device)
        label_logit_N = torch.zeros_like(lse_N)
        for chunk in _chunks(len(rows_N), weight_VE.shape[0]) if num_real else ():
            logits_CV = _logits(hidden_SE[rows_N[chunk]], weight_VE, num_real)
            lse_N[chunk] = torch.logsumexp(logits_CV, dim=-1)
            here_C, column_C = _own_labels(local_labels_N[chunk], num_real)
            label_logit_N[chunk] = logits_CV.gather(1, column_C[:, None]).squeeze(1) * here_C
            del logits_CV  # before the next chunk's are made: otherwise both are alive
        lse_N = _logsumexp_over(lse_N, tp_group)
        dist.all_reduce(label_logit_N, group=tp_group)
        ctx.save_for_backward(hidden_SE, weight_VE, rows_N, local_labels_N, lse_N)
        ctx.num_real = num_real
        return label_logit_N - lse_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """d log p / d logits = onehot(label) - softmax(logits), chunk by chunk from recomputed logits."""
        hidden_SE, weight_VE, rows_N, local_labels_N, lse_N = ctx.saved_tensors
        num_real = ctx.num_real
        grad_hidden_SE = torch.zeros_like(hidden_SE)
        grad_weight = _WeightGradient(weight_VE) if ctx.needs_input_grad[1] else None
        for chunk in _chunks(len(rows_N), weight_VE.shape[0]) if num_real else ():
            hidden_CE = hidden_SE[rows_N[chunk]]
            grad_CV = _logits(hidden_CE, weight_VE, num_real)
            grad_CV.sub_(lse_N[chunk, None]).exp_().neg_()
            here_C, column_C = _own_labels(local_labels_N[chunk], num_real)
            grad_CV.scatter_add_(1, column_C[:, None], here_C[:, None].to(grad_CV.dtype))
            grad_CV = grad_CV.mul_(grad_N[chunk, None]).to(hidden_CE.dtype)
            grad_hidden_SE[rows_N[chunk]] = grad_CV @ weight_VE[:num_real]
            if grad_weight is not None:
                grad_weight.add(grad_CV, hidden_CE)
            del grad_CV
        return grad_hidden_SE, grad_weight.finish() if grad_weight is not None else None, None, None, None, None


class _WeightGradient:
    """Accumulates dW over the chunks in fp32: straight into ``main_grad`` where Megatron's DDP keeps one.

    With ``main_grad`` the ordinary gradient must not be added a second time; ``grad_added_to_main_grad`` says so, and a
    placeholder is returned so that DDP's hook still fires (the contract of Megatron's fused weight gradient,
    megatron/core/tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication.backward, and
    megatron/core/distributed/distributed_data_parallel.py, _make_backward_post_hook).
    """

    def __init__(self, weight_VE: Any) -> None:
        self.weight = weight_VE
        self.into_main_grad = hasattr(weight_VE, "main_grad") and hasattr(weight_VE, "grad_added_to_main_grad")
        self.total_VE = weight_VE.main_grad if self.into_main_grad else torch.zeros_like(weight_VE, dtype=torch.float32)

    def add(self, grad_CV: Tensor, hidden_CE: Tensor) -> None:
        """Add grad_CV^T hidden_CE; where the product is a tensor of its own, a block of vocabulary rows at a time."""
        if _gives_fp32(grad_CV) and self.total_VE.dtype is torch.float32:
            num_real = grad_CV.shape[1]
            total_VE = self.total_VE[:num_real]
            torch.ops.aten.addmm.dtype_out(total_VE, grad_CV.t(), hidden_CE, torch.float32, out=total_VE)
            return
        block = max(1, CHUNK_BYTES // (4 * hidden_CE.shape[1]))
        for first in range(0, grad_CV.shape[1], block):
            rows = slice(first, min(first + block, grad_CV.shape[1]))
            self.total_VE[rows] += grad_CV[:, rows].t() @ hidden_CE

    def finish(self) -> Tensor:
        """The gradient to hand to autograd."""
        if not self.into_main_grad:
            return self.total_VE.to(self.weight.dtype)
        self.weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        placeholder = torch.zeros if getattr(self.weight, "zero_out_wgrad", False) else torch.empty
        return placeholder(self.weight.shape, dtype=self.weight.dtype, device=self.weight.device)


def _chunks(num_rows: int, vocab_rows: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_rows))
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _logits(hidden_CE: Tensor, weight_VE: Tensor, num_real: int) -> Tensor:
    """fp32; of half-precision operands not rounded to their type on the way where the device can do so."""
    if _gives_fp32(hidden_CE):
        return torch.mm(hidden_CE, weight_VE[:num_real].t(), out_dtype=torch.float32)
    return (hidden_CE @ weight_VE[:num_real].t()).float()


def _gives_fp32(operand: Tensor) -> bool:
    """Whether a matrix product of such operands can be had in the fp32 that it is summed in."""
    return operand.device.type != "cpu" and operand.dtype in HALF


def _own_labels(local_labels_C: Tensor, num_real: int) -> tuple[Tensor, Tensor]:
    """(bool: the label is in this rank's vocabulary, its column; column 0 where it is not)."""
    here_C = (local_labels_C >= 0) & (local_labels_C < num_real)
    return here_C, torch.where(here_C, local_labels_C, 0)


def _logsumexp_over(lse_N: Tensor, group: ProcessGroup) -> Tensor:
    """log-sum-exp across the group of each rank's log-sum-exp."""
    if group.size() == 1:
        return lse_N
    highest_N = lse_N.clone()
    dist.all_reduce(highest_N, op=dist.ReduceOp.MAX, group=group)
    total_N = torch.exp(lse_N - highest_N)
    dist.all_reduce(total_N, group=group)
    return highest_N + torch.log(total_N)
