"""Every tensor operator of a step, as it is dispatched: its FLOPs, the bytes that it reads and writes, its seconds."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True)
class Operator:
    """One call."""

    name: str
    label: str
    """What `Operators.labelled` said around it."""
    is_backward: bool
    """Within autograd's backward pass; what is computed again there too."""
    flops: int
    num_bytes: int
    """Of all tensors read and written; 0 of a view."""
    seconds: float
    """Of a CPU, where an operator has done its work when it returns."""


class Operators(TorchDispatchMode):
    """Use as a context around what is to be seen; ``seen`` has all operators in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operator] = []
        self.own_seconds = 0.0
        """What seeing took."""
        self._labels = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        came = time.perf_counter()
        kwargs = kwargs or {}
        began = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - began
        flops, num_bytes = count_flops(func, args, kwargs, out), moved_bytes(func, args, kwargs, out)
        is_backward = torch._C._current_graph_task_id() != -1
        packet = str(func.overloadpacket)
        self.seen.append(Operator(packet, self._labels[-1], is_backward, flops, num_bytes, seconds))
        self.own_seconds += time.perf_counter() - came - seconds
        return out

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Say what the operators within are for."""
        self._labels.append(name)
        try:
            yield
        finally:
            self._labels.pop()

    def labelled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the label around every call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.label(name):
                return function(*args, **kwargs)

        return call


def count_flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Two for every multiplication with its addition, of matrix products and attention; 0 of all else."""
    packet = func.overloadpacket
    if formula := ATTENTION_FLOPS.get(packet):
        return formula(*tree_map(lambda one: one.shape if isinstance(one, Tensor) else one, tuple(args)))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def moved_bytes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """What is read and written at the least; of a gathered table only the rows."""
    taken = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    given = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
    if any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
        return 0
    written = sum(one.nbytes for one in given)
    if func.overloadpacket in _GATHERING:
        return 2 * written
    return written + sum(one.nbytes for one in taken)


def _attention(products: int, query: int, is_causal: int, tokens_dim: int = 2) -> Callable[..., int]:
    """What counts one operator, given the places of the query (the key is next) and of ``is_causal`` in its arguments.

    Args:
        products: matrix products of the size of the scores.
        tokens_dim: 2 for shapes [1, H, T, D], 1 for [1, T, H, D].
    """

    def count(*args: Any, **_: Any) -> int:
        of_query, of_key = args[query], args[query + 1]
        whole = 2 * products * math.prod(of_query) * of_key[tokens_dim]
        return whole // 2 if len(args) > is_causal and args[is_causal] else whole

    return count


_aten = torch.ops.aten
_GATHERING = (_aten.embedding, _aten.gather, _aten.index, _aten.index_select)
ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    # Two products forward: the scores, and the mean of the values. Five backward: the scores again, dP, dQ, dK and dV.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention(2, 0, 4),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention(5, 1, 7),
    _aten._scaled_dot_product_flash_attention: _attention(2, 0, 4),
    _aten._scaled_dot_product_flash_attention_backward: _attention(5, 1, 11),
    _aten._flash_attention_forward: _attention(2, 0, 8, tokens_dim=1),
    _aten._flash_attention_backward: _attention(5, 1, 11, tokens_dim=1),
}
"""FLOPs from shapes, half of the square where it is causal; for torch's FlopCounterMode too."""
