"""Attention kernels that give away their log-sum-exp: torch's own on CPU and CUDA, cuDNN's, and plain arithmetic.

``torch.nn.functional.scaled_dot_product_attention`` hides the log-sum-exp, without which partial attentions over
disjoint keys cannot be merged, and its autograd cannot be given a *merged* output. So the kernels beneath it are
called by name. What every one of them is given, and gives back, is the contract at the head of kernels.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
PLAIN_BYTES = 256 * 2**20
"""Of one block of the plain kernel's scores, fp32."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of the contract."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    """(q, k, v, causal, scale) -> (output, log-sum-exp)."""
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """(grad_out, q, k, v, merged output, merged log-sum-exp, causal, scale) -> (dQ, dK, dV)."""
    lacks: Callable[[torch.device, torch.dtype, int], str | None]
    """(device, dtype, size of a head) -> what is missing to run there; None if nothing is."""
    start: Callable[[], None] = lambda: None
    """Called before its first use."""
    stop: Callable[[], None] = lambda: None
    """Called if it cannot be used after all."""
    plans_per_length: bool = False
    """It builds a plan for every new number of queries and keys, which takes longer than the attention of most."""


def _cpu_forward(q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_HTD, k_GUD, v_GUD, 0.0, causal, attn_mask=None, scale=scale
    )


def _cpu_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD, lse_HT, 0.0, causal, attn_mask=None, scale=scale
    )


def _flash_forward(q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *(x.transpose(1, 2) for x in (q_HTD, k_GUD, v_GUD)),
        None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, False, scale=scale,
    )  # fmt: skip
    return out.transpose(1, 2), lse


def _flash_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # Dropout is 0, so the kernel reads no random state; it still wants the two tensors.
    no_rng = torch.zeros(2, dtype=torch.uint64, device=q_HTD.device)
    grads = torch.ops.aten._flash_attention_backward(
        *(x.transpose(1, 2) for x in (grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD)),
        lse_HT.contiguous(), None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, no_rng, no_rng, scale=scale,
    )  # fmt: skip
    dq, dk, dv = (grad.transpose(1, 2) for grad in grads)
    return dq, dk, dv


def _cudnn_forward(q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse_HT1, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q_HTD, k_GUD, v_GUD, None, True, 0.0, causal, False, scale=scale
    )
    return out, lse_HT1.squeeze(-1)


def _cudnn_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    no_rng = torch.zeros((), dtype=torch.int64, device=q_HTD.device)
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD, lse_HT.contiguous().unsqueeze(-1), no_rng, no_rng,
        None, None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, scale=scale,
    )  # fmt: skip


def plain_forward(q_HTD: Tensor, k_GUD: Tensor, v_GUD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Products and a softmax in fp32, a block of queries at a time; for any dtype on any device."""
    out_HTD, lse_HT = torch.empty_like(q_HTD), q_HTD.new_empty(q_HTD.shape[:3], dtype=torch.float32)
    for rows, keys in _plain_blocks(q_HTD, k_GUD, causal):
        scores_GRTU = _scores(q_HTD[:, :, rows], k_GUD[:, :, keys], rows.start if causal else None, scale)
        lse_GRT = torch.logsumexp(scores_GRTU, dim=-1)
        chances_GRTU = scores_GRTU.sub_(lse_GRT.unsqueeze(-1)).exp_()
        out_HTD[:, :, rows] = (chances_GRTU.flatten(1, 2) @ v_GUD[0, :, keys].float()).view_as(q_HTD[:, :, rows])
        lse_HT[:, :, rows] = lse_GRT.flatten(0, 1)
    return out_HTD, lse_HT


def plain_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GUD: Tensor,
    v_GUD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients: dS = P * (dP - rowsum(dO * O)), P = exp(S - lse)."""
    groups = k_GUD.shape[1]
    dq_HTD = torch.empty_like(q_HTD)
    dk_GUD, dv_GUD = (torch.zeros_like(x[0], dtype=torch.float32) for x in (k_GUD, v_GUD))
    for rows, keys in _plain_blocks(q_HTD, k_GUD, causal):
        q_GXD, g_GXD, out_GXD = (_by_group(x[:, :, rows], groups) for x in (q_HTD, grad_out_HTD, out_HTD))
        scores_GRTU = _scores(q_HTD[:, :, rows], k_GUD[:, :, keys], rows.start if causal else None, scale)
        lse_GRT = torch.unflatten(lse_HT[0, :, rows], 0, (groups, -1))
        chances_GRTU = scores_GRTU.sub_(lse_GRT.unsqueeze(-1)).exp_()
        chances_GXU = chances_GRTU.flatten(1, 2)
        dv_GUD[:, keys] += chances_GXU.mT @ g_GXD
        dscores_GXU = g_GXD @ v_GUD[0, :, keys].float().mT
        dscores_GXU.sub_((g_GXD * out_GXD).sum(-1, keepdim=True)).mul_(chances_GXU).mul_(scale)
        dk_GUD[:, keys] += dscores_GXU.mT @ q_GXD
        dq_HTD[:, :, rows] = (dscores_GXU @ k_GUD[0, :, keys].float()).view_as(q_HTD[:, :, rows])
    return dq_HTD, dk_GUD.to(k_GUD.dtype).unsqueeze(0), dv_GUD.to(v_GUD.dtype).unsqueeze(0)


def _plain_blocks(q_HTD: Tensor, k_GUD: Tensor, causal: bool) -> list[tuple[slice, slice]]:
    """Blocks of queries, and the keys that they may see."""
    num_queries, num_keys = q_HTD.shape[2], k_GUD.shape[2]
    size = max(1, PLAIN_BYTES // (4 * q_HTD.shape[1] * num_keys))
    blocks = [slice(first, min(first + size, num_queries)) for first in range(0, num_queries, size)]
    return [(rows, slice(rows.stop if causal else num_keys)) for rows in blocks]


def _scores(q_HTD: Tensor, k_GUD: Tensor, first: int | None, scale: float) -> Tensor:
    """fp32 [G, H / G, T, U]; with ``first``, the number of keys before the queries, causal."""
    groups, num_keys = k_GUD.shape[1], k_GUD.shape[2]
    scores_GXU = (_by_group(q_HTD, groups) @ k_GUD[0].float().mT).mul_(scale)
    scores_GRTU = torch.unflatten(scores_GXU, 1, (-1, q_HTD.shape[2]))
    if first is not None:
        later_TU = torch.ones(q_HTD.shape[2], num_keys, dtype=torch.bool, device=q_HTD.device).triu(first + 1)
        scores_GRTU.masked_fill_(later_TU, -torch.inf)
    return scores_GRTU


def _by_group(x_HTD: Tensor, groups: int) -> Tensor:
    """fp32 [G, H / G * T, D]: one below the other, all heads that read the same keys."""
    return torch.unflatten(x_HTD[0].float(), 0, (groups, -1)).flatten(1, 2)


def _cpu_lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    return None if device.type == "cpu" else "is for the CPU"


def _cuda_lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    if device.type != "cuda":
        return "is for CUDA"
    if dtype not in HALF:
        return f"takes bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    if head_size % 8 or head_size > 256:
        return f"takes heads of a multiple of 8 up to 256, not {head_size}"
    return None


def _cudnn_lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    if lacks := _cuda_lacks(device, dtype, head_size):
        return lacks
    if not torch.backends.cudnn.is_available():
        return "needs cuDNN"
    return None if _capability(device) >= (9, 0) else "is faster than flash from compute capability 9.0 on only"


def _package_lacks(name: str, capabilities: tuple[int, ...]) -> Callable[[torch.device, torch.dtype, int], str | None]:
    def lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
        if missing := _cuda_lacks(device, dtype, head_size):
            return missing
        if _capability(device)[0] not in capabilities:
            return f"is for compute capability {' and '.join(f'{one}.x' for one in capabilities)}"
        known: Callable[[], list[str]] = getattr(torch.nn.attention, "list_flash_attention_impls", list)
        return None if name in known() else f"is not known to torch {torch.__version__}"

    return lacks


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _activate(name: str) -> Callable[[], None]:
    """torch puts the package's kernels beneath the functions that flash calls; ImportError without the package."""
    return lambda: torch.nn.attention.activate_flash_attention_impl(name)


def _restore() -> None:
    torch.nn.attention.restore_flash_attention_impl()


def _never_lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    return None


KERNELS = (
    Kernel("flash3", _flash_forward, _flash_backward, _package_lacks("FA3", (9,)), _activate("FA3"), _restore),
    Kernel("flash4", _flash_forward, _flash_backward, _package_lacks("FA4", (9, 10)), _activate("FA4"), _restore),
    Kernel("cudnn", _cudnn_forward, _cudnn_backward, _cudnn_lacks, plans_per_length=True),
    Kernel("flash", _flash_forward, _flash_backward, _cuda_lacks),
    Kernel("cpu", _cpu_forward, _cpu_backward, _cpu_lacks),
    Kernel("plain", plain_forward, plain_backward, _never_lacks),
)
"""In the order in which they are preferred."""
