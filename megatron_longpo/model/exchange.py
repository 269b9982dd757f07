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


def _pass_on(tensor: Tensor, group: ProcessGroup, arriving: Tensor, steps: int = 1) -> _Arriving:
    """Send to the rank that many steps ahead and receive from the one as far behind, without waiting."""
    rank, size = group.rank(), group.size()
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, dist.get_global_rank(group, (rank + steps) % size), group),
            dist.P2POp(dist.irecv, arriving, dist.get_global_rank(group, (rank - steps) % size), group),
        ]
    )
    return _Arriving(arriving, tensor, works)


def visible_keys(rank: int, source: int, length: int) -> slice:
    """Those of the ``length`` tokens of ``source`` whose keys ``rank`` attends to (trunk.py)."""
    return slice(length // 2) if source < rank else slice(length)


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
            last = step == size - 1
            arriving = None if last else _pass_on(self._held, self._group, torch.empty_like(self._held))
            yield (rank - step) % size, self._held[0], self._held[1]
            if arriving is not None:
                self._held = arriving.wait()

    def add_gradient(self, dk_GTD: Tensor, dv_GTD: Tensor) -> None:
        """Add the gradient of the last yielded ones, of those tokens of them whose keys are visible."""
        if self._gradient is None:  # of the own keys, which are all attended
            total = torch.stack((dk_GTD, dv_GTD)).float()
        else:
            total, self._gradient = self._gradient.wait(), None  # what was sent has left
            total[0][:, :, : dk_GTD.shape[2]] += dk_GTD
            total[1][:, :, : dv_GTD.shape[2]] += dv_GTD
        self._gradient = _pass_on(total, self._group, torch.empty_like(total))

    def gradient(self) -> Task[tuple[Tensor, Tensor]]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradient is not None
        yield
        (dk_GTD, dv_GTD), self._gradient = self._gradient.wait(), None
        return dk_GTD, dv_GTD


class GatheredKeys:
    """Keys and values of every rank, own first, while those of the others are gathered; see RingKeys.

    Gradients go home one by one as they are found, so that those of one other rank are in memory, in fp32, not of all.
    """

    def __init__(self, k_GTD: Tensor, v_GTD: Tensor, group: ProcessGroup) -> None:
        self._own, self._group = torch.stack((k_GTD, v_GTD)), group
        self._all = self._own.new_empty((group.size(), *self._own.shape))
        work = dist.all_gather_into_tensor(self._all.flatten(0, 1), self._own, group=group, async_op=True)
        self._others = _Arriving(self._all, self._own, [work])
        self._gradient: Tensor | None = None
        self._arriving: _Arriving | None = None
        self._step = 0

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (rank they belong to, keys, values)."""
        rank, size = self._group.rank(), self._group.size()
        yield rank, self._own[0], self._own[1]
        self._others.wait()
        for step in range(1, size):
            self._step, source = step, (rank - step) % size
            yield source, self._all[source, 0], self._all[source, 1]

    def add_gradient(self, dk_GTD: Tensor, dv_GTD: Tensor) -> None:
        """Send home the gradient of the last yielded ones, of those tokens of them whose keys are visible."""
        self._add_arrived()
        found = torch.stack((dk_GTD, dv_GTD)).float()
        if self._gradient is None:  # of the own keys, which are all attended
            self._gradient = found
            return
        rank, size = self._group.rank(), self._group.size()
        seen = visible_keys((rank + self._step) % size, rank, self._gradient.shape[3])  # by the rank that sends
        arriving = torch.empty_like(self._gradient[:, :, :, seen])
        self._arriving = _pass_on(found, self._group, arriving, -self._step)

    def gradient(self) -> Task[tuple[Tensor, Tensor]]:
        """Return the gradients of the own keys and values, fp32."""
        assert self._gradient is not None
        yield
        self._add_arrived()
        dk_GTD, dv_GTD = self._gradient
        return dk_GTD, dv_GTD

    def _add_arrived(self) -> None:
        if self._arriving is not None:
            assert self._gradient is not None
            arrived, self._arriving = self._arriving.wait(), None
            self._gradient[:, :, :, : arrived.shape[3]] += arrived


def tokens_to_heads(x_HTD: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """Give away heads and get tokens: [1, H, T, D] -> [1, H / C, C * T, D].

    The result holds the first halves of all ranks in their order, then the second halves in the opposite order: with
    all ranks of the context-parallel group the whole trunk in order, with a part of them, ranks that follow each other,
    the tokens of one rank of a larger zigzag.
    """
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    by_rank = (size, num_heads // size, 2, length // 2, dim)  # [rank, H / C, half, T / 2, D]
    received = yield from _swap(x_HTD.reshape(by_rank).contiguous(), group)
    whole = received.new_empty((num_heads // size, 2, *by_rank[:1], *by_rank[3:]))
    whole[:, 0] = received[:, :, 0].movedim(0, 1)
    whole[:, 1] = received[:, :, 1].flip(0).movedim(0, 1)
    return whole.reshape(1, num_heads // size, size * length, dim)


def heads_to_tokens(x_HTD: Tensor, group: ProcessGroup) -> Task[Tensor]:
    """The inverse of tokens_to_heads, and its backward: [1, H / C, C * T, D] -> [1, H, T, D]."""
    size = group.size()
    _, num_heads, length, dim = x_HTD.shape
    first, second = x_HTD.reshape(num_heads, 2, size, length // size // 2, dim).unbind(1)
    send = torch.stack([x.movedim(1, 0) for x in (first, second.flip(1))], dim=2)  # [rank, H / C, half, T / 2, D]
    swapping = _swap(send, group)
    del x_HTD, first, second, send
    received = yield from swapping
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
