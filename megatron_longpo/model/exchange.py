"""How trunk keys and values reach the queries of other context-parallel ranks, and their gradients come back.

Three ways, named as Megatron's ``--cp-comm-type`` names them. Of C ranks, every way moves (C - 1) / C of the trunk's
keys and values through every rank; they differ in memory and in what can overlap:

* ``p2p`` (RingKeys): each rank passes on what it holds while it attends to it; the keys of one other rank in memory.
* ``all_gather`` (GatheredKeys): the keys of all ranks at once; fewer, larger messages.
* ``a2a`` (tokens_to_heads): ranks swap tokens for heads, and each attends the whole trunk with its part of the heads.

Letters in shapes, all of them after a leading 1: H = query heads, or any heads, G = key-value heads, T = trunk tokens
that this rank holds, chunk r and chunk 2C - 1 - r (layout.py), D = size of a head.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.errors import UserError
from megatron_longpo.model.parallel_sizes import ParallelSizes

CP_COMM_TYPES = ("p2p", "all_gather", "allgather", "a2a", "a2a+p2p")


def check_exchange(sizes: ParallelSizes, options: Mapping[str, Any]) -> None:
    """The ways of sharing a trunk that swap tokens for heads have heads enough to swap.

    Args:
        options: the model's shape (hf.config.megatron_options).

    Raises:
        UserError: an unknown name, or heads or sizes that do not divide.
    """
    cp = sizes.context
    if cp == 1:
        return
    for name in sizes.cp_comm_type:
        if name not in CP_COMM_TYPES:
            raise UserError(f"--cp-comm-type {name} is not known; choose {', '.join(CP_COMM_TYPES)}")
    if len(sizes.cp_comm_type) not in (1, options["num_layers"]):
        raise UserError(f"--cp-comm-type has {len(sizes.cp_comm_type)} names; give one, or {options['num_layers']}")
    swapping = cp if "a2a" in sizes.cp_comm_type else 1
    if "a2a+p2p" in sizes.cp_comm_type:
        factors = sizes.hierarchical
        if not factors or len(factors) != 2 or factors[0] * factors[1] != cp:
            raise UserError(
                f"--cp-comm-type a2a+p2p needs --hierarchical-context-parallel-sizes A B with A * B = {cp} "
                f"(--context-parallel-size); {factors} is given; choose A so that it divides the key-value heads"
            )
        swapping = max(swapping, factors[0])
    local_groups = options["num_query_groups"] // sizes.tensor
    if local_groups % swapping:
        fitting = max(size for size in range(1, local_groups + 1) if local_groups % size == 0 and cp % size == 0)
        raise UserError(
            f"--cp-comm-type {' '.join(sizes.cp_comm_type)} swaps tokens for heads among {swapping} ranks, and of the "
            f"{options['num_query_groups']} key-value heads a tensor-parallel rank has {local_groups}, which do not "
            f"divide; at most {fitting} ranks can swap here, while p2p and all_gather work with any number"
        )


@dataclass(slots=True)
class _Arriving:
    """A tensor on its way from the previous rank."""

    tensor: Tensor
    sent: Tensor
    """Kept alive until it has left."""
    works: list[dist.Work]

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.tensor


def _pass_on(tensor: Tensor, group: ProcessGroup) -> _Arriving:
    """Send to the next rank of the ring and receive the same from the previous one, without waiting."""
    rank, size = group.rank(), group.size()
    arriving = torch.empty_like(tensor)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, dist.get_global_rank(group, (rank + 1) % size), group),
            dist.P2POp(dist.irecv, arriving, dist.get_global_rank(group, (rank - 1) % size), group),
        ]
    )
    return _Arriving(arriving, tensor, works)


class RingKeys:
    """Keys and values of every rank in turn, own first, passed around the ring.

    With ``add_gradient`` called once for each, ``gradient`` holds afterwards the sum of all ranks' gradients of the own
    keys and values: accumulators travel with them, in fp32, and come home after the last step.
    """

    def __init__(self, k_GTD: Tensor, v_GTD: Tensor, group: ProcessGroup) -> None:
        self._held, self._group = torch.stack((k_GTD, v_GTD)), group
        self._gradient: _Arriving | None = None

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (rank they belong to, keys, values)."""
        rank, size = self._group.rank(), self._group.size()
        for step in range(size):
            arriving = _pass_on(self._held, self._group) if step < size - 1 else None
            yield (rank - step) % size, self._held[0], self._held[1]
            if arriving is not None:
                self._held = arriving.wait()

    def add_gradient(self, dk_GTD: Tensor, dv_GTD: Tensor, keys: slice) -> None:
        """Add the gradient of the last yielded ones, of the tokens ``keys`` of them."""
        if self._gradient is None:  # of the own keys, which are all attended
            total = torch.stack((dk_GTD.float(), dv_GTD.float()))
        else:
            total = self._gradient.wait()
            total[0][:, :, keys] += dk_GTD
            total[1][:, :, keys] += dv_GTD
        self._gradient = _pass_on(total, self._group)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradient is not None
        dk_GTD, dv_GTD = self._gradient.wait()
        return dk_GTD, dv_GTD


class GatheredKeys:
    """Keys and values of every rank, own first, all gathered before the first is used; see RingKeys."""

    def __init__(self, k_GTD: Tensor, v_GTD: Tensor, group: ProcessGroup) -> None:
        own = torch.stack((k_GTD, v_GTD))
        self._group = group
        self._all = own.new_empty((group.size(), *own.shape))
        dist.all_gather_into_tensor(self._all.flatten(0, 1), own, group=group)
        self._gradients: Tensor | None = None
        self._source = group.rank()

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (rank they belong to, keys, values)."""
        for step in range(self._group.size()):
            self._source = (self._group.rank() - step) % self._group.size()
            yield self._source, self._all[self._source, 0], self._all[self._source, 1]

    def add_gradient(self, dk_GTD: Tensor, dv_GTD: Tensor, keys: slice) -> None:
        """Add the gradient of the last yielded ones, of the tokens ``keys`` of them."""
        if self._gradients is None:
            self._gradients = torch.zeros_like(self._all, dtype=torch.float32)
        self._gradients[self._source, 0][:, :, keys] += dk_GTD
        self._gradients[self._source, 1][:, :, keys] += dv_GTD

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradients is not None
        own = torch.empty_like(self._gradients[0])
        dist.reduce_scatter_tensor(own, self._gradients.flatten(0, 1), group=self._group)
        dk_GTD, dv_GTD = own
        return dk_GTD, dv_GTD


def tokens_to_heads(x_HTD: Tensor, group: ProcessGroup) -> Tensor:
    """Give away heads and get tokens: [1, H, T, D] -> [1, H / C, C * T, D].

    The result holds the first halves of all ranks in their order, then the second halves in the opposite order: with
    all ranks of the context-parallel group the whole trunk in order, with a part of them, ranks that follow each other,
    the tokens of one rank of a larger zigzag.
    """
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    send = x_HTD.reshape(size, num_heads // size, 2, length // 2, dim).contiguous()
    received = torch.empty_like(send)  # [rank, H / C, half, T / 2, D]
    dist.all_to_all_single(received, send, group=group)
    first, second = received[:, :, 0], received.flip(0)[:, :, 1]
    return torch.cat((first, second)).movedim(0, 1).reshape(1, num_heads // size, size * length, dim)


def heads_to_tokens(x_HTD: Tensor, group: ProcessGroup) -> Tensor:
    """The inverse of tokens_to_heads, and its backward: [1, H / C, C * T, D] -> [1, H, T, D]."""
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    first, second = x_HTD.reshape(num_heads, 2, size, length // size // 2, dim).unbind(1)
    send = torch.stack((first, second.flip(1)), dim=2).movedim(1, 0).contiguous()  # [rank, H / C, half, T / 2, D]
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=group)
    return received.reshape(1, num_heads * size, length // size, dim)
