"""How trunk keys and values reach the queries of other context-parallel ranks, and their gradients come back.

Three ways, named as Megatron's ``--cp-comm-type`` names them. Of C ranks, every way moves (C - 1) / C of the trunk's
keys and values through every rank; they differ in memory and in what can overlap:

* ``p2p`` (RingKeys): each rank passes on what it holds while it attends to it; the keys of one other rank in memory.
* ``all_gather`` (GatheredKeys): the keys of all ranks at once; fewer, larger messages.
* ``a2a`` (tokens_to_heads): ranks swap tokens for heads, and each attends the whole trunk with its part of the heads.

What takes part is a task (tasks.py): it starts what is to be sent, lets others compute, and waits only then.

Letters in shapes, all of them after a leading 1: H = query heads, or any heads, G = key-value heads, T = trunk tokens
that this rank holds, chunk r and chunk 2C - 1 - r (layout.py), D = size of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.errors import UserError
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.model.tasks import Task

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
    """A tensor on its way from other ranks."""

    tensor: Tensor
    sent: Tensor
    """Kept alive until it has left."""
    works: Sequence[dist.Work | None]

    def wait(self) -> Tensor:
        for work in self.works:
            assert work is not None  # as outside the group
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

    def gradient(self) -> Task[tuple[Tensor, Tensor]]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradient is not None
        yield
        dk_GTD, dv_GTD = self._gradient.wait()
        return dk_GTD, dv_GTD


class GatheredKeys:
    """Keys and values of every rank, own first, while those of the others are gathered; see RingKeys."""

    def __init__(self, k_GTD: Tensor, v_GTD: Tensor, group: ProcessGroup) -> None:
        self._own, self._group = torch.stack((k_GTD, v_GTD)), group
        self._all = self._own.new_empty((group.size(), *self._own.shape))
        work = dist.all_gather_into_tensor(self._all.flatten(0, 1), self._own, group=group, async_op=True)
        self._others = _Arriving(self._all, self._own, [work])
        self._gradients: Tensor | None = None
        self._source = group.rank()

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (rank they belong to, keys, values)."""
        rank, size = self._group.rank(), self._group.size()
        yield rank, self._own[0], self._own[1]
        self._others.wait()
        for step in range(1, size):
            self._source = (rank - step) % size
            yield self._source, self._all[self._source, 0], self._all[self._source, 1]

    def add_gradient(self, dk_GTD: Tensor, dv_GTD: Tensor, keys: slice) -> None:
        """Add the gradient of the last yielded ones, of the tokens ``keys`` of them."""
        if self._gradients is None:
            self._gradients = torch.zeros_like(self._all, dtype=torch.float32)
        self._gradients[self._source, 0][:, :, keys] += dk_GTD
        self._gradients[self._source, 1][:, :, keys] += dv_GTD

    def gradient(self) -> Task[tuple[Tensor, Tensor]]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradients is not None
        own = torch.empty_like(self._gradients[0])
        sums = self._gradients.flatten(0, 1)
        arriving = _Arriving(own, sums, [dist.reduce_scatter_tensor(own, sums, group=self._group, async_op=True)])
        yield
        dk_GTD, dv_GTD = arriving.wait()
        return dk_GTD, dv_GTD


def tokens_to_heads(x_HTD: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """Give away heads and get tokens: [1, H, T, D] -> [1, H / C, C * T, D].

    The result holds the first halves of all ranks in their order, then the second halves in the opposite order: with
    all ranks of the context-parallel group the whole trunk in order, with a part of them, ranks that follow each other,
    the tokens of one rank of a larger zigzag.
    """
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    send = x_HTD.reshape(size, num_heads // size, 2, length // 2, dim).contiguous()
    received = yield from _swap(send, group)  # [rank, H / C, half, T / 2, D]
    first, second = received[:, :, 0], received.flip(0)[:, :, 1]
    return torch.cat((first, second)).movedim(0, 1).reshape(1, num_heads // size, size * length, dim)


def heads_to_tokens(x_HTD: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """The inverse of tokens_to_heads, and its backward: [1, H / C, C * T, D] -> [1, H, T, D]."""
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    first, second = x_HTD.reshape(num_heads, 2, size, length // size // 2, dim).unbind(1)
    send = torch.stack((first, second.flip(1)), dim=2).movedim(1, 0).contiguous()  # [rank, H / C, half, T / 2, D]
    received = yield from _swap(send, group)
    return received.reshape(1, num_heads * size, length // size, dim)


def gather_tokens(x_HRD: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """Gather [1, H, R, D] of every rank as [1, H, C * R, D] of all."""
    if group.size() == 1:
        return x_HRD
    own_1HRD, parts_CHRD = x_HRD.contiguous(), x_HRD.new_empty((group.size(), *x_HRD.shape[1:]))
    work = dist.all_gather_into_tensor(parts_CHRD, own_1HRD, group=group, async_op=True)
    arriving = _Arriving(parts_CHRD, own_1HRD, [work])
    yield
    return arriving.wait().movedim(0, 1).flatten(1, 2).unsqueeze(0)


def tokens_to_owners(x_HBD: Tensor, group: ProcessGroup) -> Task[tuple[Tensor, ...]]:
    """Exchange [1, H, C * R, D] on every rank for every rank's part for this rank's tokens, each [1, H, R, D]."""
    if group.size() == 1:
        return (x_HBD,)
    send_C1HRD = torch.unflatten(x_HBD, 2, (group.size(), -1)).movedim(2, 0).contiguous()
    received_C1HRD = yield from _swap(send_C1HRD, group)
    return received_C1HRD.unbind(0)


def _swap(send: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """Give the r-th part to rank r, and get one of the same size from each."""
    received = torch.empty_like(send)
    arriving = _Arriving(received, send, [dist.all_to_all_single(received, send, group=group, async_op=True)])
    yield
    return arriving.wait()
