"""Megatron as on a GPU, but on meta tensors and with ranks that exist in name only: ``activate()`` before its import.

What a GPU computes in one kernel and torch here in several is made one again, so that nothing counts that a GPU would
not hold: what Megatron compiles (megatron/core/jit.py), and RMSNorm.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_longpo import platform

META = torch.device("meta")


class Tracker(TorchDispatchMode):
    """Counts what is called."""

    def one_kernel(self) -> AbstractContextManager[None]:
        """What is called inside is a single kernel on a GPU."""
        raise NotImplementedError


_counting: list[Tracker] = []


def activate() -> None:
    """Let ``device="cuda"`` and torch.cuda.current_device() mean meta tensors, for the rest of the process."""
    torch.compile = _one_kernel  # jit_fuser is a name of it
    platform.activate(announce=False)
    platform._CPU = META


def _one_kernel(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    if function is None:
        return _one_kernel

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _counting[-1].one_kernel() if _counting else nullcontext():
            return function(*args, **kwargs)

    return run


class _RMSNorm(torch.autograd.Function):
    """What aten::_fused_rms_norm and its backward allocate on CUDA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None) -> Tensor:
    return _RMSNorm.apply(x, weight)


@contextmanager
def ranks(
    tracker: Tracker, kernel: str, *, rank: int, tensor: int = 1, pipeline: int = 1, context: int = 1
) -> Iterator[None]:
    """Be ``rank`` of so many, with the attention kernel of that name; ``tracker`` counts inside."""
    import torch.distributed._tools.fake_collectives  # of meta tensors
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_longpo.model import kernels
    from megatron_longpo.model.kernel_calls import KERNELS

    chosen = next(one for one in KERNELS if one.name == kernel)
    world = tensor * pipeline * context
    dist.init_process_group("cpu:fake,meta:fake", store=FakeStore(), rank=rank, world_size=world)
    sizes: dict[str, Any] = {"context_parallel_size": context, "create_gloo_process_groups": False}
    parallel_state.initialize_model_parallel(tensor, pipeline, **sizes)
    model_parallel_cuda_manual_seed(0)
    _counting.append(tracker)
    gc.collect()
    gc.freeze()  # the tracker collects garbage: let it not search all modules each time
    try:
        with (
            mock.patch.object(torch.nn.functional, "rms_norm", _rms_norm),
            mock.patch.object(kernels, "choose", return_value=chosen),
            tracker,
        ):
            yield
    finally:
        _counting.pop()
        gc.unfreeze()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
