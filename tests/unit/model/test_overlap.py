"""What ranks send each other travels while attention is computed: starts, kernel calls and waits in their order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_longpo.model import branches, trunk
from megatron_longpo.model.attention import _TreeAttention, tree_attention, trunk_exchange
from megatron_longpo.model.layout import pack_layout, tree_layout
from tests.ranks import run_ranks

SENDING = {
    "all_gather_into_tensor": "gather",
    "all_to_all_single": "swap",
    "reduce_scatter_tensor": "sum",
    "batch_isend_irecv": "hop",
}


class Recorder:
    """Puts itself around the collectives and the kernels; for the rest of the process."""

    def __init__(self) -> None:
        self.num_kernels = 0
        self.sent: list[str] = []
        self.beside: list[int] = []
        """Kernel calls between the start of each communication and the wait for it."""
        for name, kind in SENDING.items():
            setattr(dist, name, self._sending(kind, getattr(dist, name)))
        for module in (trunk, branches):
            for name in ("attend", "attend_backward"):
                setattr(module, name, self._counting(getattr(module, name)))

    def exposed(self) -> list[str]:
        """The kinds of those that nothing was computed beside, in the order of their start; forgets all."""
        found = [kind for kind, number in zip(self.sent, self.beside, strict=True) if number == 0]
        self.sent, self.beside = [], []
        return found

    def _counting(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.num_kernels += 1
            return kernel(*args, **kwargs)

        return call

    def _sending(self, kind: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            assert kind == "hop" or kwargs["async_op"]
            place, before = len(self.sent), self.num_kernels
            self.sent.append(kind)
            self.beside.append(-1)

            def waited() -> None:
                if self.beside[place] < 0:
                    self.beside[place] = self.num_kernels - before

            works = collective(*args, **kwargs)
            return [_Waited(work, waited) for work in works] if kind == "hop" else _Waited(works, waited)

        return call


class _Waited:
    """A dist.Work that tells when it is waited for."""

    def __init__(self, work: Any, waited: Callable[[], None]) -> None:
        self._work, self._waited = work, waited

    def wait(self) -> None:
        self._waited()
        self._work.wait()


@dataclass(frozen=True)
class Exposed:
    """Of one pass forward and backward: how many communications there were, and those that nothing was done beside."""

    num_forward: int
    forward: list[str]
    num_backward: int
    backward: list[str]


def all_exposed(cases: list[tuple[str, int]]) -> list[Exposed]:
    """By exchange and number of trees."""
    size = dist.get_world_size()
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
    recorder = Recorder()
    found: list[Exposed] = []
    for exchange, num_trees in cases:
        layout = pack_layout([tree_layout(97, (12, 30), size)] * num_trees)
        q, k, v = (torch.randn(1, n, layout.length, 16, requires_grad=True) for n in (8, 4, 4))
        rest = (layout, trunk_exchange(exchange, groups), groups.cp, 0.25)
        attended = tree_attention(q, k, v, *rest)
        forward = len(recorder.sent), recorder.exposed()
        _TreeAttention.apply(q, k, v, *attended, *rest).sum().backward()
        found.append(Exposed(*forward, len(recorder.sent), recorder.exposed()))
    return found


EXPOSED = {
    "p2p": ([], ["swap"]),  # the branches' gradients, on their way home
    "all_gather": ([], ["swap"]),
    "a2a": (["gather"], ["gather"] * 2 + ["swap"] * 3),  # the branches, and the trunk's gradients
}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_what_no_attention_is_computed_beside(num_ranks: int) -> None:
    cases = [(exchange, num_trees) for exchange in EXPOSED for num_trees in (1, 2)]
    for rank in run_ranks(all_exposed, num_ranks, cases):
        for (exchange, num_trees), found in zip(cases, rank, strict=True):
            forward, backward = EXPOSED[exchange]
            if num_trees == 1:
                assert (found.forward, found.backward) == (forward, backward), exchange
            else:  # trees of a micro-batch hide each other's
                assert len(found.forward) <= len(forward) and len(found.backward) <= len(backward), exchange
            assert found.num_forward >= 3 * num_trees and found.num_backward >= 3 * num_trees
