"""Attention of the trunk to itself, causal, its tokens split over the context-parallel ranks (layout.py).

Every rank attends its own queries to the keys of all ranks before it, block by block, and merges the blocks by
log-sum-exp. With the zigzag split a block is one of three, all of them plain kernel calls:

    keys from          queries       keys
    the rank itself    both chunks   both chunks, causal
    an earlier rank    both chunks   the first chunk
    a later rank       second chunk  both chunks

so that after the first step all ranks do the same work at every step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.exchange import GatheredKeys, RingKeys, heads_to_tokens, tokens_to_heads
from megatron_longpo.model.kernels import attend, attend_backward

WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class TrunkExchange:
    """How the ranks share the trunk's attention; with neither group one rank holds it all."""

    keys: ProcessGroup | None = None
    """Ranks whose keys and values visit each other."""
    gather: bool = False
    """All their keys at once, instead of around a ring."""
    heads: ProcessGroup | None = None
    """Ranks that swap tokens for heads first."""


def trunk_forward(q: Tensor, k: Tensor, v: Tensor, exchange: TrunkExchange, scale: float) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        q: [1, H, L, D]; k, v: [1, G, L, D]: this rank's trunk tokens.

    Returns:
        (output [1, H, L, D], log-sum-exp [1, H, L] fp32, nats).
    """
    if exchange.heads is None:
        return _forward(q, k, v, exchange, scale)
    out, lse = _forward(*(tokens_to_heads(x, exchange.heads) for x in (q, k, v)), exchange=exchange, scale=scale)
    return heads_to_tokens(out, exchange.heads), heads_to_tokens(lse.unsqueeze(-1), exchange.heads).squeeze(-1)


def trunk_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, exchange: TrunkExchange, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dQ, dK, dV) of trunk_forward, given what it took and returned."""
    if exchange.heads is None:
        return _backward(grad_out, q, k, v, out, lse, exchange, scale)
    group = exchange.heads
    moved = (tokens_to_heads(x, group) for x in (grad_out, q, k, v, out, lse.unsqueeze(-1)))
    grad_out, q, k, v, out, lse = moved
    grads = _backward(grad_out, q, k, v, out, lse.squeeze(-1), exchange, scale)
    dq, dk, dv = (heads_to_tokens(grad, group) for grad in grads)
    return dq, dk, dv


def _forward(q: Tensor, k: Tensor, v: Tensor, exchange: TrunkExchange, scale: float) -> tuple[Tensor, Tensor]:
    if exchange.keys is None or exchange.keys.size() == 1:
        return attend(q, k, v, True, scale)
    visiting = (GatheredKeys if exchange.gather else RingKeys)(k, v, exchange.keys)
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    for source, their_k, their_v in visiting:
        queries, keys, causal = _block(exchange.keys.rank(), source, q.shape[2])
        block_out, block_lse = attend(q[:, :, queries], their_k[:, :, keys], their_v[:, :, keys], causal, scale)
        before = lse[:, :, queries]
        after = torch.logaddexp(before, block_lse)
        out[:, :, queries] *= torch.exp(before - after).unsqueeze(-1)
        out[:, :, queries] += torch.exp(block_lse - after).unsqueeze(-1) * block_out
        lse[:, :, queries] = after
    return out.to(q.dtype), lse


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, exchange: TrunkExchange, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if exchange.keys is None or exchange.keys.size() == 1:
        return attend_backward(grad_out, q, k, v, out, lse, True, scale)
    visiting = (GatheredKeys if exchange.gather else RingKeys)(k, v, exchange.keys)
    dq = torch.zeros_like(q, dtype=torch.float32)
    for source, their_k, their_v in visiting:
        queries, keys, causal = _block(exchange.keys.rank(), source, q.shape[2])
        block_dq, block_dk, block_dv = attend_backward(
            *(x[:, :, queries] for x in (grad_out, q)),
            *(x[:, :, keys] for x in (their_k, their_v)),
            *(x[:, :, queries] for x in (out, lse)),
            causal=causal,
            scale=scale,
        )
        dq[:, :, queries] += block_dq
        visiting.add_gradient(block_dk, block_dv, keys)
    dk, dv = visiting.gradient()
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _block(rank: int, source: int, length: int) -> tuple[slice, slice, bool]:
    """What this rank attends to of ``source``'s keys: (queries, keys, causal)."""
    half = length // 2
    if source == rank:
        return WHOLE, WHOLE, True
    return (WHOLE, slice(half), False) if source < rank else (slice(half, length), WHOLE, False)
