"""Attention of the trunk to itself, causal, its tokens split over the context-parallel ranks (layout.py).

Every rank attends its own queries to the keys of all ranks before it, block by block, and merges the blocks by
log-sum-exp. With the zigzag split a block is one of three, all of them plain kernel calls:

    keys from          queries       keys
    the rank itself    both chunks   both chunks, causal
    an earlier rank    both chunks   the first chunk
    a later rank       second chunk  both chunks

so that after the first step all ranks do the same work at every step. All that communicates is a task (tasks.py).

Letters in shapes, all of them after a leading 1: H = query heads, G = key-value heads, T = trunk tokens that this rank
holds, D = size of a head.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.model.exchange import GatheredKeys, RingKeys, heads_to_tokens, tokens_to_heads, visible_keys
from megatron_longpo.model.kernels import attend, attend_backward, merge_into
from megatron_longpo.model.tasks import Task, together

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


def trunk_forward(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, exchange: TrunkExchange, scale: float
) -> Task[tuple[Tensor, Tensor]]:
    """Attend this rank's trunk tokens: (output [1, H, T, D], log-sum-exp [1, H, T] fp32, nats)."""
    if (group := exchange.heads) is None:
        return (yield from _forward(q_HTD, k_GTD, v_GTD, exchange, scale))
    q_HTD, k_GTD, v_GTD = yield from together(*(tokens_to_heads(x, group) for x in (q_HTD, k_GTD, v_GTD)))
    out_HTD, lse_HT = yield from _forward(q_HTD, k_GTD, v_GTD, exchange, scale)
    back = (heads_to_tokens(x, group) for x in (out_HTD, lse_HT.unsqueeze(-1)))
    out_HTD, lse_HT1 = yield from together(*back)
    return out_HTD, lse_HT1.squeeze(-1)


def trunk_backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GTD: Tensor,
    v_GTD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    exchange: TrunkExchange,
    scale: float,
) -> Task[tuple[Tensor, Tensor, Tensor]]:
    """Compute the gradients (dQ, dK, dV) of trunk_forward from what it took and returned."""
    if (group := exchange.heads) is None:
        return (yield from _backward(grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT, exchange, scale))
    of_tokens = (grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT.unsqueeze(-1))
    grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT1 = yield from together(
        *(tokens_to_heads(x, group) for x in of_tokens)
    )
    grads = yield from _backward(grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT1.squeeze(-1), exchange, scale)
    del grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT1  # before as much is needed to send the gradients back
    sending = [heads_to_tokens(grad, group) for grad in grads]
    del grads
    dq_HTD, dk_GTD, dv_GTD = yield from together(*sending)
    return dq_HTD, dk_GTD, dv_GTD


def _forward(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, exchange: TrunkExchange, scale: float
) -> Task[tuple[Tensor, Tensor]]:
    if exchange.keys is None or exchange.keys.size() == 1:
        return attend(q_HTD, k_GTD, v_GTD, True, scale)
    visiting = (GatheredKeys if exchange.gather else RingKeys)(k_GTD, v_GTD, exchange.keys)
    merged: tuple[Tensor, Tensor] | None = None
    for source, their_k, their_v in visiting:
        queries, keys, causal = _block(exchange.keys.rank(), source, q_HTD.shape[2])
        block_out, block_lse = attend(q_HTD[:, :, queries], their_k[:, :, keys], their_v[:, :, keys], causal, scale)
        if merged is None:  # the own keys, which come first: all queries attend to them
            merged = block_out.float(), block_lse
        else:
            merge_into(merged[0][:, :, queries], merged[1][:, :, queries], block_out, block_lse)
        del their_k, their_v, block_out, block_lse  # before the next block's are made
        yield  # the next keys are on their way
    assert merged is not None
    out_HTD, lse_HT = merged
    return out_HTD.to(q_HTD.dtype), lse_HT


def _backward(
    grad_out_HTD: Tensor,
    q_HTD: Tensor,
    k_GTD: Tensor,
    v_GTD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    exchange: TrunkExchange,
    scale: float,
) -> Task[tuple[Tensor, Tensor, Tensor]]:
    """Hands over at the end only: its blocks hide all that travels but the last, which other work is kept for."""
    if exchange.keys is None or exchange.keys.size() == 1:
        return attend_backward(grad_out_HTD, q_HTD, k_GTD, v_GTD, out_HTD, lse_HT, True, scale)
    visiting = (GatheredKeys if exchange.gather else RingKeys)(k_GTD, v_GTD, exchange.keys)
    dq_HTD: Tensor | None = None
    for source, their_k, their_v in visiting:
        queries, keys, causal = _block(exchange.keys.rank(), source, q_HTD.shape[2])
        block_dq, block_dk, block_dv = attend_backward(
            *(x[:, :, queries] for x in (grad_out_HTD, q_HTD)),
            *(x[:, :, keys] for x in (their_k, their_v)),
            *(x[:, :, queries] for x in (out_HTD, lse_HT)),
            causal=causal,
            scale=scale,
        )
        if dq_HTD is None:
            dq_HTD = block_dq.float()
        else:
            dq_HTD[:, :, queries] += block_dq
        visiting.add_gradient(block_dk, block_dv)
        del their_k, their_v, block_dq, block_dk, block_dv  # before the next block's are made
    assert dq_HTD is not None
    dk_GTD, dv_GTD = yield from visiting.gradient()
    del visiting
    return dq_HTD.to(q_HTD.dtype), dk_GTD.to(k_GTD.dtype), dv_GTD.to(v_GTD.dtype)


def _block(rank: int, source: int, length: int) -> tuple[slice, slice, bool]:
    """Tell what this rank attends to of ``source``'s keys: (queries, keys, causal)."""
    queries = WHOLE if source <= rank else slice(length // 2, length)
    return queries, visible_keys(rank, source, length), source == rank
