"""One contract for attention kernels, and the choice among those that keep it (kernel_calls.py).

The contract: queries [1, H, T, D], keys and values [1, G, U, D], H a multiple of G (grouped-query attention without
repeating keys), strided as they come; causal (then queries and keys are the same tokens, T = U) or not; nothing of size
T x U is ever built. Forward gives the output and the log-sum-exp of every row in fp32.

Backward of a part: softmax over all keys has dS = P * (dP - rowsum(dO * O)), where P = exp(S - lse) and O are those
of the *whole* row. A flash backward kernel computes exactly this from (dO, O, lse); fed the merged O and lse, it
returns the part's share of dQ and the full dK, dV of the part's keys (FlashAttention-2, arXiv 2307.08691, alg. 2).

The choice is made once for a device, a dtype and the shape of a head: the first kernel that can run there and whose
output and gradients on a small case are those of plain fp32 arithmetic.

Some kernels plan for every new length. They attend trunks, which are padded to few lengths (`trunk_multiple`). Branches
are as long as they are, and their keys end where the trunk's real ones do: padding could be hidden by a mask only, so
their calls say ``any_length`` and get the first kernel that does not plan.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_longpo import platform
from megatron_longpo.errors import UserError, one_line
from megatron_longpo.model.kernel_calls import KERNELS, Kernel, plain_backward, plain_forward

AUTO = "auto"
NAMES = (AUTO, *(kernel.name for kernel in KERNELS))
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of the small case, as part of the largest number; 1e-5 for other dtypes. bf16 rounds at 2^-9."""
TILE, MOST_LENGTHS = 128, 128
"""Of `trunk_multiple`: 1,024 tokens for trunks up to 131,072."""
_only = AUTO


def use_only(name: str) -> None:
    """Let every later choice be this kernel, or ``auto``; for the rest of the process."""
    global _only  # noqa: PLW0603  # a process computes attention by one kernel
    _only = name
    choose.cache_clear()


def attend(
    q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float, any_length: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of queries to keys: (output [1, H, T, D] in the inputs' dtype, log-sum-exp [1, H, T] fp32, nats).

    With ``causal`` the queries and the keys are the same tokens (T = U). ``any_length``: T and U are not padded.
    """
    return _kernel_of(q_HTD, k_GUD, any_length).forward(q_HTD, k_GUD, v_GUD, causal, scale)


def attend_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
    any_length: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dQ, dK, dV) of one part, given the *merged* output and log-sum-exp of its queries."""
    kernel = _kernel_of(q_HTD, k_GUD, any_length)
    return kernel.backward(grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD, lse_HT, causal, scale)


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attentions of the same queries over disjoint keys: (output [1, H, T, D], log-sum-exp [1, H, T] fp32).

    out = sum_i exp(lse_i - lse) out_i with lse = logsumexp_i lse_i; summed in fp32, returned in the parts' dtype.
    """
    lse_HT = torch.logsumexp(torch.stack([lse.float() for _, lse in parts]), dim=0)
    out_HTD = sum(torch.exp(lse.float() - lse_HT).unsqueeze(-1) * out.float() for out, lse in parts)
    assert isinstance(out_HTD, Tensor)
    return out_HTD.to(parts[0][0].dtype), lse_HT


def merge_into(out_HTD: Tensor, lse_HT: Tensor, block_out_HTD: Tensor, block_lse_HT: Tensor) -> None:
    """Merge the attention of a further block of keys into an fp32 output and its log-sum-exp, in place."""
    after_HT = torch.logaddexp(lse_HT, block_lse_HT)
    out_HTD.mul_(torch.exp(lse_HT - after_HT).unsqueeze(-1))
    out_HTD.addcmul_(block_out_HTD, torch.exp(block_lse_HT - after_HT).unsqueeze(-1))
    lse_HT.copy_(after_HT)


def _kernel_of(q_HTD: Tensor, k_GUD: Tensor, any_length: bool) -> Kernel:
    return choose(q_HTD.device, q_HTD.dtype, q_HTD.shape[3], q_HTD.shape[1] // k_GUD.shape[1], any_length)


def trunk_multiple(options: Any, longest: int) -> int:
    """Tokens of which every padded trunk is a multiple: 1 where what attends trunks plans for no length.

    Else the trunks of a run have at most MOST_LENGTHS lengths, and no padding is longer than that part of the longest
    or than a tile of the kernels.

    Args:
        options: Megatron's, or a model's config.
        longest: trunk of the run, tokens.
    """
    # Transformer Engine takes cuDNN's attention where that is the faster one.
    if options.transformer_impl != "transformer_engine" and not choose_for(options).plans_per_length:
        return 1
    return TILE * math.ceil(longest / (TILE * MOST_LENGTHS))


def choose_for(options: Any, any_length: bool = False) -> Kernel:
    """The kernel for a model on this rank's device, by Megatron's options or its config; raises as `choose`."""
    device = torch.device("cpu") if platform.is_cpu() else torch.device("cuda", torch.cuda.current_device())
    queries_per_key = options.num_attention_heads // options.num_query_groups
    return choose(device, options.params_dtype, options.kv_channels, queries_per_key, any_length)


@cache
def choose(
    device: torch.device, dtype: torch.dtype, head_size: int, queries_per_key: int, any_length: bool = False
) -> Kernel:
    """The kernel for tensors like these; with ``any_length`` another one if that plans for every length.

    Raises:
        UserError: the one that was asked for (`use_only`) cannot be used here.
    """
    kernels = [kernel for kernel in KERNELS if _only in (AUTO, kernel.name)]
    if any_length:
        first = choose(device, dtype, head_size, queries_per_key, False)  # the key of the cache
        if not first.plans_per_length:
            return first
        kernels = [kernel for kernel in KERNELS if not kernel.plans_per_length]
    refused: list[str] = []
    for kernel in kernels:
        fault = kernel.lacks(device, dtype, head_size) or _fault(kernel, device, dtype, head_size, queries_per_key)
        if fault is None:
            return kernel
        refused.append(f"{kernel.name}: {fault}")
    raise UserError(f"attention kernel {'; '.join(refused)}; choose another, or auto")


def _fault(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, queries_per_key: int
) -> str | None:
    """What is wrong with its results on a small case; None if nothing is."""
    if kernel.name == "plain":
        return None
    try:
        kernel.start()
    except (ImportError, RuntimeError, ValueError) as error:
        return one_line(error)
    try:
        errors = [_error(kernel, device, dtype, head_size, queries_per_key, causal) for causal in (True, False)]
        worst, limit = max(errors), TOLERANCE.get(dtype, 1e-5)
        fault = None if worst <= limit else f"is off by {worst:.1e} on a small case, where {limit:.0e} is allowed"
    except (RuntimeError, NotImplementedError, ValueError) as error:
        fault = one_line(error)
    if fault is not None:
        kernel.stop()
    return fault


@torch.no_grad()
def _error(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, queries_per_key: int, causal: bool
) -> float:
    """The largest difference to plain fp32, as part of the largest number: output, log-sum-exp, three gradients.

    The part's keys are half of all; the gradients are of a row merged over both halves.
    """
    draw = torch.Generator().manual_seed(0)
    num_queries, num_keys, groups, scale = 96, 96 if causal else 160, 2, head_size**-0.5

    def random(heads: int, tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, head_size, generator=draw).to(device=device, dtype=dtype)

    q, grad = (random(groups * queries_per_key, num_queries) for _ in range(2))
    k, v, other_k, other_v = (random(groups, num_keys) for _ in range(4))
    exact_q, exact_k, exact_v = q.float(), k.float(), v.float()
    expected = plain_forward(exact_q, exact_k, exact_v, causal, scale)
    out, lse = (x.clone() for x in expected)
    merge_into(out, lse, *plain_forward(exact_q, other_k.float(), other_v.float(), False, scale))
    expected += plain_backward(grad.float(), exact_q, exact_k, exact_v, out, lse, causal, scale)
    found = kernel.forward(q, k, v, causal, scale)
    found += kernel.backward(grad, q, k, v, out.to(dtype), lse, causal, scale)
    return max(_difference(one, other) for one, other in zip(found, expected, strict=True))


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()
