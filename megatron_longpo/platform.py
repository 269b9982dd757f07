"""Stock Megatron on CPU tensors and gloo, where there is no CUDA.

``activate()`` is a documented feature: the quickstart and all tests use it. With CUDA present it replaces nothing. Each
replacement below names what in Megatron-Core 0.19 needs it; those that a GPU needs as well are in megatron_hooks.py.

Not covered, because nothing in LongPO training needs it: CUDA graphs, fp8, Transformer Engine, NCCL-only features.
"""

import os
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from multiprocessing import parent_process
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import ReduceOp
from torch.utils._device import _device_constructors

from megatron_longpo.megatron_hooks import import_timers, replace

_CPU = torch.device("cpu")
_is_active = False


def is_cpu() -> bool:
    """This process runs Megatron on the CPU: activate() found no CUDA."""
    return _is_active


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in pinned memory, from which a GPU copies while the host goes on; as it is where there is none."""
    return tensor.pin_memory() if torch.cuda.is_available() and not _is_active else tensor


def peak_memory() -> int:
    """The most bytes that this process held so far: of tensors on its GPU, or on the CPU of everything (RSS)."""
    if _is_active or not torch.cuda.is_available():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
    return torch.cuda.max_memory_allocated()


def activate(announce: bool = True) -> bool:
    """Let Megatron run on the CPU if CUDA is not available; call before the first use of Megatron.

    Returns:
        Whether the process runs on the CPU. A second call changes nothing.
    """
    global _is_active  # noqa: PLW0603  # a process runs on the CPU or not, from its start to its end
    if _is_active:
        return True
    # arguments.py asks for it under tensor and context parallelism before Blackwell; CUDA reads it as it starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if torch.cuda.is_available():
        import_timers()
        return False
    # Megatron saves in the background with the help of child processes, which load this module once more.
    if announce and os.environ.get("RANK", "0") == "0" and parent_process() is None:
        print("CUDA is not available: running Megatron on CPU tensors and gloo", file=sys.stderr, flush=True)
    # torch.compile gains nothing here and costs minutes; jit_fuser (megatron/core/jit.py) would call it.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    torch._dynamo.config.disable = True  # type: ignore[attr-defined]
    _patch_cuda_module()
    _patch_tensor_and_module()
    _patch_megatron()
    _patch_factories()
    _patch_all_reduce()
    _is_active = True
    return True


def _patch_factories() -> None:
    """``device='cuda'`` means the CPU where a tensor is made or moved, e.g. ``torch.tensor(..., device='cuda')`` in
    training.py. (A TorchFunctionMode would do the same at a third of a small model's step: it sees every operation.)
    """
    for function in _device_constructors():  # all that torch.set_default_device knows
        if getattr(torch, function.__name__, None) is function:
            setattr(torch, function.__name__, _on_cpu(function))
    torch.Tensor.to = _on_cpu(torch.Tensor.to)  # type: ignore[method-assign]


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return function(*(_CPU if _is_cuda(one) else one for one in args), **kwargs)

    return on_cpu


def _patch_all_reduce() -> None:
    """A group of one rank has nothing to reduce, and gloo takes 50 microseconds for it: training.py reduces each number
    that a step reports by itself.
    """
    plain = torch.distributed.all_reduce

    @wraps(plain)
    def all_reduce(tensor: torch.Tensor, op: Any = ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        if not async_op and torch.distributed.get_world_size(group) == 1:
            return None
        return plain(tensor, op, group, async_op)

    replace(torch.distributed, "all_reduce", all_reduce)


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _Inert:
    """A stream or an event: on the CPU work is done in order, so there is nothing to wait for."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0

    def __enter__(self) -> "_Inert":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Stats(dict):  # type: ignore[type-arg]
    """Memory statistics of a device that has none."""

    def __missing__(self, _: str) -> int:
        return 0


def _patch_cuda_module() -> None:
    """torch.cuda as Megatron uses it: one device that is the CPU."""
    cuda = torch.cuda
    properties = SimpleNamespace(name="cpu", major=0, minor=0, total_memory=0, multi_processor_count=0)
    inert = _Inert()
    replacements: dict[str, Any] = {
        # initialize.py asserts is_available() and sets up model parallelism only if device_count() > 0.
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: _CPU,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (0, 0),
        "get_device_name": lambda *_: "cpu",
        "current_stream": lambda *_: inert,
        "default_stream": lambda *_: inert,
        "stream": lambda *_: nullcontext(),
        "Stream": _Inert,
        "Event": _Inert,
        # random.py: the CPU's generator is the device's generator.
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": lambda _: None,  # torch.manual_seed calls it, having seeded the CPU's generator itself
        "initial_seed": torch.default_generator.initial_seed,
        "memory_stats": lambda *_: _Stats(),
        "mem_get_info": lambda *_: (0, 0),
    }
    for name in ("set_device", "set_stream", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        replacements[name] = lambda *_, **__: None
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        replacements[name] = lambda *_, **__: 0
    for name, value in replacements.items():
        setattr(cuda, name, value)
    cuda.random.get_rng_state = replacements["get_rng_state"]
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, lambda *_, **__: None)
    # DataLoader(pin_memory=True) and torch.distributed.checkpoint ask for an accelerator; there is none.
    torch.accelerator.is_available = lambda: False  # type: ignore[assignment]


def _patch_tensor_and_module() -> None:
    """``.cuda()`` stays on the CPU, and ``Tensor.type()`` reads as CUDA where Megatron compares it."""
    plain_type = torch.Tensor.type

    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # optimizer.py, distrib_optimizer.py and clip_grads.py take 'torch.cuda.FloatTensor' and its kin only.
        name = plain_type(self, *args, **kwargs)
        return name.replace("torch.", "torch.cuda.", 1) if isinstance(name, str) else name

    torch.Tensor.type = tensor_type  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def _patch_megatron() -> None:
    import_timers()
    import megatron.core.tensor_parallel.random as megatron_random

    # random.py sets the state of a CUDA generator by index; activation recomputation restores it this way.
    replace(megatron_random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state))
    _repair_torch_adam()


def _repair_torch_adam() -> None:
    """Let the distributed optimizer resume with torch's own Adam, which is what there is without TE and Apex.

    distrib_optimizer.py asserts, while a checkpoint loads, that the fresh optimizer's parameters agree on a step, but
    torch's Adam creates its state at the first step only. Then it gives all parameters one and the same step tensor,
    which every parameter's update would increment, and looks for a step among the tensors of a checkpoint.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def state_dict(self: Any) -> Any:
        for group in self.optimizer.param_groups if isinstance(self.optimizer, torch.optim.Adam) else ():
            for parameter in group["params"]:
                state = self.optimizer.state[parameter]
                if "step" not in state:  # exactly what torch's Adam starts from
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return plain_state_dict(self)

    def load_state_dict(self: Any, loaded: Any) -> None:
        plain_load(self, loaded)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()

    def set_states(self: Any, model_param: Any, tensors: Any) -> None:
        plain_set(self, model_param, {"step": None, **tensors})  # None is passed over

    plain_state_dict = replace(DistributedOptimizer, "state_dict", state_dict)
    plain_load = replace(DistributedOptimizer, "load_state_dict", load_state_dict)
    plain_set = replace(DistributedOptimizer, "_set_main_param_and_optimizer_states", set_states)
