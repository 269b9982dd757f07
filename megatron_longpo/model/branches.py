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
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.exchange import gather_tokens, tokens_to_owners
from megatron_longpo.model.kernels import attend, attend_backward, merge
from megatron_longpo.model.layout import TreeLayout, branch_segments, num_real_trunk_keys
from megatron_longpo.model.tasks import Task, together


def branches_forward(
    q_HRD: Tensor,
    k_GRD: Tensor,
    v_GRD: Tensor,
    trunk_k_GTD: Tensor,
    trunk_v_GTD: Tensor,
    layout: TreeLayout,
    cp: ProcessGroup,
    scale: float,
) -> Task[tuple[Tensor, Tensor]]:
    """Attend the branches of one tree: a task (tasks.py).

    Returns:
        (output [1, H, R, D], zeros for padding; log-sum-exp [1, H, R] fp32, nats).
    """
    heads, groups = q_HRD.shape[1], k_GRD.shape[1]
    gathered = yield from gather_tokens(torch.cat((q_HRD, k_GRD, v_GRD), 1), cp)
    q_HBD, k_GBD, v_GBD = torch.split(gathered, [heads, groups, groups], 1)
    on_trunk = _attend_own_trunk(q_HBD, trunk_k_GTD, trunk_v_GTD, layout, cp.rank(), scale)
    of_owners = yield from together(*(tokens_to_owners(x_HBX, cp) for x_HBX in on_trunk))
    parts = list(zip(*of_owners, strict=True))
    out_HRD, lse_HR = torch.zeros_like(q_HRD), q_HRD.new_zeros(q_HRD.shape[:3], dtype=torch.float32)
    first = cp.rank() * q_HRD.shape[2]
    for own, before in branch_segments(layout, cp.rank()):
        here = slice(own.start - first, own.stop - first)
        inside = [attend(q_HRD[:, :, here], k_GBD[:, :, own], v_GBD[:, :, own], True, scale, True)]
        if before.start < before.stop:
            inside.append(attend(q_HRD[:, :, here], k_GBD[:, :, before], v_GBD[:, :, before], False, scale, True))
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
) -> Task[tuple[Tensor, ...]]:
    """Compute the gradients of branches_forward from what it took and returned: a task (tasks.py).

    The merged output and log-sum-exp make each part's backward the part of the whole (kernels.py), so every rank finds
    the gradient of its own trunk keys by itself, and its part of all branch gradients, which are then summed.

    Returns:
        (dQ, dK, dV, of the branches; dK, dV of this rank's trunk tokens, without its padding).
    """
    heads, groups = q_HRD.shape[1], k_GRD.shape[1]
    gathered, lse_HB1 = yield from together(
        gather_tokens(torch.cat((grad_out_HRD, q_HRD, out_HRD, k_GRD, v_GRD), 1), cp),
        gather_tokens(lse_HR.unsqueeze(-1), cp),
    )
    grad_out_HBD, q_HBD, out_HBD, k_GBD, v_GBD = torch.split(gathered, [heads] * 3 + [groups] * 2, 1)
    sums_XBD = q_HBD.new_zeros((1, heads + 2 * groups, *q_HBD.shape[2:]), dtype=torch.float32)
    dq_HBD, dk_GBD, dv_GBD = torch.split(sums_XBD, [heads, groups, groups], 1)

    def of_keys(queries: slice, k_GUD: Tensor, v_GUD: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Add to dQ; return dK and dV."""
        grad_out, q, out, lse = (x[:, :, queries] for x in (grad_out_HBD, q_HBD, out_HBD, lse_HB1))
        part_dq, dk_GUD, dv_GUD = attend_backward(grad_out, q, k_GUD, v_GUD, out, lse.squeeze(-1), causal, scale, True)
        dq_HBD[:, :, queries] += part_dq
        return dk_GUD, dv_GUD

    trunk_keys = [x[:, :, : num_real_trunk_keys(layout, cp.rank())] for x in (trunk_k_GTD, trunk_v_GTD)]
    if trunk_keys[0].shape[2]:
        trunk_grads = of_keys(slice(sum(layout.branches)), *trunk_keys, causal=False)
    else:
        trunk_grads = trunk_keys
    for own, before in branch_segments(layout, cp.rank()):
        for keys, causal in ((own, True), (before, False)):
            if keys.start < keys.stop:
                part_dk, part_dv = of_keys(own, k_GBD[:, :, keys], v_GBD[:, :, keys], causal)
                dk_GBD[:, :, keys] += part_dk
                dv_GBD[:, :, keys] += part_dv
    parts = yield from tokens_to_owners(sums_XBD.to(q_HRD.dtype), cp)
    own_XRD = torch.stack(parts).float().sum(0).to(q_HRD.dtype)
    return *torch.split(own_XRD, [heads, groups, groups], 1), *trunk_grads


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
        real_out, real_lse = attend(
            q_HBD[:, :, real], trunk_k_GTD[:, :, keys], trunk_v_GTD[:, :, keys], False, scale, True
        )
        out_HBD[:, :, real], lse_HB1[:, :, real, 0] = real_out, real_lse
    return out_HBD, lse_HB1
