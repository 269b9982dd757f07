"""Torch's own attention kernels, forward and backward, that expose the log-sum-exp.

``torch.nn.functional.scaled_dot_product_attention`` hides the log-sum-exp, without which partial attentions over
disjoint keys cannot be merged, and its autograd cannot be given a *merged* output. So the kernels beneath it are
called by name. All take [1, H, T, D] queries and [1, G, U, D] keys and values, H a multiple of G (grouped-query
attention without repeating keys), and never build anything of size T x U.

Backward of a part: softmax over all keys has dS = P * (dP - rowsum(dO * O)), where P = exp(S - lse) and O are those
of the *whole* row. A flash backward kernel computes exactly this from (dO, O, lse); fed the merged O and lse, it
returns the part's share of dQ and the full dK, dV of the part's keys (FlashAttention-2, arXiv 2307.08691, alg. 2).
"""

import torch
from torch import Tensor


def attend(q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries to keys: (output [1, H, T, D] in the inputs' dtype, log-sum-exp [1, H, T] fp32, nats).

    With ``causal`` the queries and the keys are the same tokens (T = U).

    Raises:
        NotImplementedError: the device or dtype has no kernel that returns the log-sum-exp.
    """
    if q_HTD.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_HTD, k_GUD, v_GUD, 0.0, causal, attn_mask=None, scale=scale
        )
    _check_flash_dtype(q_HTD)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *(x.transpose(1, 2) for x in (q_HTD, k_GUD, v_GUD)),
        None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, False, scale=scale,
    )  # fmt: skip
    return out.transpose(1, 2), lse


def attend_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dQ, dK, dV) of one part, given the *merged* output and log-sum-exp of its queries."""
    if q_HTD.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD, lse_HT, 0.0, causal, attn_mask=None, scale=scale
        )
    # Dropout is 0, so the kernel reads no random state; it still wants the two tensors.
    no_rng = torch.zeros(2, dtype=torch.uint64, device=q_HTD.device)
    grads = torch.ops.aten._flash_attention_backward(
        *(x.transpose(1, 2) for x in (grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD)),
        lse_HT.contiguous(), None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, no_rng, no_rng, scale=scale,
    )  # fmt: skip
    dq, dk, dv = (grad.transpose(1, 2) for grad in grads)
    return dq, dk, dv


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attentions of the same queries over disjoint keys: (output [1, H, T, D], log-sum-exp [1, H, T] fp32).

    out = sum_i exp(lse_i - lse) out_i with lse = logsumexp_i lse_i; summed in fp32, returned in the parts' dtype.
    """
    lse_HT = torch.logsumexp(torch.stack([lse.float() for _, lse in parts]), dim=0)
    out_HTD = sum(torch.exp(lse.float() - lse_HT).unsqueeze(-1) * out.float() for out, lse in parts)
    assert isinstance(out_HTD, Tensor)
    return out_HTD.to(parts[0][0].dtype), lse_HT


def _check_flash_dtype(q: Tensor) -> None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise NotImplementedError(
            f"CUDA attention with {q.dtype}: torch's flash kernels take bf16 and fp16 only; add --bf16 to the options"
        )
