"""Attention of both branches to the trunk and to themselves, under any context parallelism.

Branch queries are few and the trunk's keys are many, so the queries travel: every rank gets all of them, attends them,
without mask, to the trunk keys it holds anyway, and sends each rank back the results for that rank's queries. A rank
attends its own queries to the branch tokens before them itself, and merges all results by log-sum-exp. The traffic does
not depend on the trunk's length; heads need not divide by the ranks.

Bytes that one rank receives per layer, for B branch tokens with padding, C ranks, H query and G key-value heads of
dimension D, elements of e bytes:

    forward    (C - 1) / C * B * ((H + 2 G) D e + H D e + 4 H)
    backward   (C - 1) / C * B * ((3 H + 2 G) D e + 4 H + (H + 2 G) D e)

Tensors are heads-first: [1, H or G, tokens, D]; b = this rank's share of the B branch tokens, L = of the trunk's.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.kernels import attend, attend_backward, merge
from megatron_longpo.model.layout import PairLayout, num_own_keys, own_segments


def branches_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    trunk_k: Tensor,
    trunk_v: Tensor,
    layout: PairLayout,
    cp: ProcessGroup,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        q: [1, H, b, D]; k, v: [1, G, b, D]; trunk_k, trunk_v: [1, G, L, D].

    Returns:
        (output [1, H, b, D], zeros for padding; log-sum-exp [1, H, b] fp32, nats).
    """
    num_heads, num_groups = q.shape[1], k.shape[1]
    all_q, all_k, all_v = _gather(torch.cat((q, k, v), 1), cp).split([num_heads, num_groups, num_groups], 1)
    on_trunk = _attend_own_trunk(all_q, trunk_k, trunk_v, layout, cp.rank(), scale)
    parts = list(zip(*(_to_owners(x, cp) for x in on_trunk), strict=True))
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)
    for own, before in own_segments(layout, cp.rank()):
        here = slice(own.start - cp.rank() * q.shape[2], own.stop - cp.rank() * q.shape[2])
        inside = [attend(q[:, :, here], all_k[:, :, own], all_v[:, :, own], True, scale)]
        if before.start < before.stop:
            inside.append(attend(q[:, :, here], all_k[:, :, before], all_v[:, :, before], False, scale))
        outside = [(part_out[:, :, here], part_lse[:, :, here, 0]) for part_out, part_lse in parts]
        out[:, :, here], lse[:, :, here] = merge(outside + inside)
    return out, lse


def branches_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    trunk_k: Tensor,
    trunk_v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: PairLayout,
    cp: ProcessGroup,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients (dQ, dK, dV, trunk dK, trunk dV) of branches_forward, given what it took and returned.

    The merged output and log-sum-exp make each part's backward the part of the whole (kernels.py), so every rank finds
    the gradient of its own trunk keys by itself, and its share of all branch gradients, which are then summed.
    """
    heads, groups = q.shape[1], k.shape[1]
    gathered = _gather(torch.cat((grad_out, q, out, k, v), 1), cp).split([heads] * 3 + [groups] * 2, 1)
    all_grad_out, all_q, all_out, all_k, all_v = gathered
    all_lse = _gather(lse.unsqueeze(-1), cp).squeeze(-1)
    sums = torch.zeros_like(torch.cat((all_q, all_k, all_v), 1), dtype=torch.float32)
    dq, dk, dv = sums.split([heads, groups, groups], 1)
    trunk_dk, trunk_dv = torch.zeros_like(trunk_k), torch.zeros_like(trunk_v)
    real = slice(layout.chosen + layout.rejected)
    keys = slice(num_own_keys(layout, cp.rank()))
    calls = [(real, keys, trunk_k, trunk_v, trunk_dk, trunk_dv, False)] if keys.stop else []
    for own, before in own_segments(layout, cp.rank()):
        calls.append((own, own, all_k, all_v, dk, dv, True))
        if before.start < before.stop:
            calls.append((own, before, all_k, all_v, dk, dv, False))
    for queries, keys, their_k, their_v, their_dk, their_dv, causal in calls:
        part_dq, part_dk, part_dv = attend_backward(
            *(x[:, :, queries] for x in (all_grad_out, all_q)),
            *(x[:, :, keys] for x in (their_k, their_v)),
            *(x[:, :, queries] for x in (all_out, all_lse)),
            causal=causal,
            scale=scale,
        )
        dq[:, :, queries] += part_dq
        their_dk[:, :, keys] += part_dk
        their_dv[:, :, keys] += part_dv
    own_sums = torch.stack(_to_owners(sums.to(q.dtype), cp)).float().sum(0).to(q.dtype)
    own_dq, own_dk, own_dv = own_sums.split([heads, groups, groups], 1)
    return own_dq, own_dk, own_dv, trunk_dk, trunk_dv


def _attend_own_trunk(
    all_q: Tensor, trunk_k: Tensor, trunk_v: Tensor, layout: PairLayout, rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """All branch queries on this rank's trunk keys: (output [1, H, B, D], log-sum-exp [1, H, B, 1]).

    A rank with padding only contributes nothing: log-sum-exp -inf.
    """
    out = torch.zeros_like(all_q)
    lse = all_q.new_full((*all_q.shape[:3], 1), -torch.inf, dtype=torch.float32)
    real, num_keys = slice(layout.chosen + layout.rejected), num_own_keys(layout, rank)
    if num_keys:
        keys = slice(num_keys)
        real_out, real_lse = attend(all_q[:, :, real], trunk_k[:, :, keys], trunk_v[:, :, keys], False, scale)
        out[:, :, real], lse[:, :, real, 0] = real_out, real_lse
    return out, lse


def _gather(x: Tensor, cp: ProcessGroup) -> Tensor:
    """[1, H, b, D] of every rank -> [1, H, B, D] of all."""
    if cp.size() == 1:
        return x
    shares = x.new_empty((cp.size(), *x.shape[1:]))
    dist.all_gather_into_tensor(shares, x.contiguous(), group=cp)
    return shares.movedim(0, 1).flatten(1, 2).unsqueeze(0)


def _to_owners(x: Tensor, cp: ProcessGroup) -> tuple[Tensor, ...]:
    """[1, H, B, D] on every rank -> for each rank its part for this rank's tokens, [1, H, b, D]."""
    if cp.size() == 1:
        return (x,)
    send = x.unflatten(2, (cp.size(), -1)).movedim(2, 0).contiguous()
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=cp)
    return received.unbind(0)
