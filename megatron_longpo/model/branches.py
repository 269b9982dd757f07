"""Attention of a tree's branches to the trunk and each to itself, under any context parallelism.

Branch queries are few and the trunk's keys are many, so the queries travel: every rank gets all of them, attends them,
without mask, to the trunk keys it holds anyway, and sends each rank back the results for that rank's queries. A rank
attends its own queries to the branch tokens before them itself, and merges all results by log-sum-exp. The traffic does
not depend on the trunk's length; heads need not divide by the ranks.

Bytes that one rank receives per layer, for B branch tokens with padding, C ranks, H query and G key-value heads of
dimension D, elements of e bytes:

    forward    (C - 1) / C * B * ((H + 2 G) D e + H D e + 4 H)
    backward   (C - 1) / C * B * ((3 H + 2 G) D e + 4 H + (H + 2 G) D e)

Letters in shapes, all of them after a leading 1: H = query heads, G = key-value heads, B = branch tokens of all ranks,
R = those of them that this rank holds, T = trunk tokens that this rank holds, D = size of a head.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.kernels import attend, attend_backward, merge
from megatron_longpo.model.layout import TreeLayout, branch_segments, num_real_trunk_keys


def branches_forward(
    q_HRD: Tensor,
    k_GRD: Tensor,
    v_GRD: Tensor,
    trunk_k_GTD: Tensor,
    trunk_v_GTD: Tensor,
    layout: TreeLayout,
    cp: ProcessGroup,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend the branches of one tree.

    Returns:
        (output [1, H, R, D], zeros for padding; log-sum-exp [1, H, R] fp32, nats).
    """
    heads, groups = q_HRD.shape[1], k_GRD.shape[1]
    q_HBD, k_GBD, v_GBD = torch.split(_gather(torch.cat((q_HRD, k_GRD, v_GRD), 1), cp), [heads, groups, groups], 1)
    on_trunk = _attend_own_trunk(q_HBD, trunk_k_GTD, trunk_v_GTD, layout, cp.rank(), scale)
    parts = list(zip(*(_to_owners(x_HBX, cp) for x_HBX in on_trunk), strict=True))
    out_HRD, lse_HR = torch.zeros_like(q_HRD), q_HRD.new_zeros(q_HRD.shape[:3], dtype=torch.float32)
    first = cp.rank() * q_HRD.shape[2]
    for own, before in branch_segments(layout, cp.rank()):
        here = slice(own.start - first, own.stop - first)
        inside = [attend(q_HRD[:, :, here], k_GBD[:, :, own], v_GBD[:, :, own], True, scale)]
        if before.start < before.stop:
            inside.append(attend(q_HRD[:, :, here], k_GBD[:, :, before], v_GBD[:, :, before], False, scale))
        outside = [(part_HRD[:, :, here], part_HR1[:, :, here, 0]) for part_HRD, part_HR1 in parts]
        out_HRD[:, :, here], lse_HR[:, :, here] = merge(outside + inside)
    return out_HRD, lse_HR


def branches_backward(
    grad_out_HRD: Tensor,
    q_HRD: Tensor,
    k_GRD: Tensor,
    v_GRD: Tensor,
    trunk_k_GTD: Tensor,
    trunk_v_GTD: Tensor,
    out_HRD: Tensor,
    lse_HR: Tensor,
    layout: TreeLayout,
    cp: ProcessGroup,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients (dQ, dK, dV, trunk dK, trunk dV) of branches_forward from what it took and returned.

    The merged output and log-sum-exp make each part's backward the part of the whole (kernels.py), so every rank finds
    the gradient of its own trunk keys by itself, and its part of all branch gradients, which are then summed.
    """
    heads, groups = q_HRD.shape[1], k_GRD.shape[1]
    gathered = _gather(torch.cat((grad_out_HRD, q_HRD, out_HRD, k_GRD, v_GRD), 1), cp)
    grad_out_HBD, q_HBD, out_HBD, k_GBD, v_GBD = torch.split(gathered, [heads] * 3 + [groups] * 2, 1)
    lse_HB = _gather(lse_HR.unsqueeze(-1), cp).squeeze(-1)
    sums_XBD = torch.zeros_like(torch.cat((q_HBD, k_GBD, v_GBD), 1), dtype=torch.float32)
    dq_HBD, dk_GBD, dv_GBD = torch.split(sums_XBD, [heads, groups, groups], 1)
    trunk_dk_GTD, trunk_dv_GTD = torch.zeros_like(trunk_k_GTD), torch.zeros_like(trunk_v_GTD)
    real = slice(sum(layout.branches))
    keys = slice(num_real_trunk_keys(layout, cp.rank()))
    calls = [(real, keys, trunk_k_GTD, trunk_v_GTD, trunk_dk_GTD, trunk_dv_GTD, False)] if keys.stop else []
    for own, before in branch_segments(layout, cp.rank()):
        calls.append((own, own, k_GBD, v_GBD, dk_GBD, dv_GBD, True))
        if before.start < before.stop:
            calls.append((own, before, k_GBD, v_GBD, dk_GBD, dv_GBD, False))
    for queries, keys, their_k, their_v, their_dk, their_dv, causal in calls:
        part_dq, part_dk, part_dv = attend_backward(
            *(x[:, :, queries] for x in (grad_out_HBD, q_HBD)),
            *(x[:, :, keys] for x in (their_k, their_v)),
            *(x[:, :, queries] for x in (out_HBD, lse_HB)),
            causal=causal,
            scale=scale,
        )
        dq_HBD[:, :, queries] += part_dq
        their_dk[:, :, keys] += part_dk
        their_dv[:, :, keys] += part_dv
    own_XRD = torch.stack(_to_owners(sums_XBD.to(q_HRD.dtype), cp)).float().sum(0).to(q_HRD.dtype)
    dq_HRD, dk_GRD, dv_GRD = torch.split(own_XRD, [heads, groups, groups], 1)
    return dq_HRD, dk_GRD, dv_GRD, trunk_dk_GTD, trunk_dv_GTD


def _attend_own_trunk(
    q_HBD: Tensor, trunk_k_GTD: Tensor, trunk_v_GTD: Tensor, layout: TreeLayout, cp_rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend all branch queries to this rank's trunk keys: (output [1, H, B, D], log-sum-exp [1, H, B, 1]).

    A rank that holds padding only contributes nothing: log-sum-exp -inf.
    """
    out_HBD = torch.zeros_like(q_HBD)
    lse_HB1 = q_HBD.new_full((*q_HBD.shape[:3], 1), -torch.inf, dtype=torch.float32)
    real, num_keys = slice(sum(layout.branches)), num_real_trunk_keys(layout, cp_rank)
    if num_keys:
        keys = slice(num_keys)
        real_out, real_lse = attend(q_HBD[:, :, real], trunk_k_GTD[:, :, keys], trunk_v_GTD[:, :, keys], False, scale)
        out_HBD[:, :, real], lse_HB1[:, :, real, 0] = real_out, real_lse
    return out_HBD, lse_HB1


def _gather(x_HRD: Tensor, cp: ProcessGroup) -> Tensor:
    """Gather [1, H, R, D] of every rank as [1, H, B, D] of all."""
    if cp.size() == 1:
        return x_HRD
    parts_CHRD = x_HRD.new_empty((cp.size(), *x_HRD.shape[1:]))
    dist.all_gather_into_tensor(parts_CHRD, x_HRD.contiguous(), group=cp)
    return parts_CHRD.movedim(0, 1).flatten(1, 2).unsqueeze(0)


def _to_owners(x_HBD: Tensor, cp: ProcessGroup) -> tuple[Tensor, ...]:
    """Exchange [1, H, B, D] on every rank for every rank's part for this rank's tokens, each [1, H, R, D]."""
    if cp.size() == 1:
        return (x_HBD,)
    send_C1HRD = torch.unflatten(x_HBD, 2, (cp.size(), -1)).movedim(2, 0).contiguous()
    received_C1HRD = torch.empty_like(send_C1HRD)
    dist.all_to_all_single(received_C1HRD, send_C1HRD, group=cp)
    return received_C1HRD.unbind(0)
