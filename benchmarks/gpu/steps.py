"""Measurements of steps of a model of Mistral-7B's width: each yields one row a point, on every rank."""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from benchmarks.causal import compare, set_tree_attention
from benchmarks.common import peak_bytes, platform
from benchmarks.gpu.scale import LONGEST, MIDDLE, TYPICAL, Scale, scale
from benchmarks.sharing import two_passes
from benchmarks.small_mistral import random_pair, shared_pass
from megatron_longpo.model import kernels
from megatron_longpo.model.flops import separate_flops, tree_flops
from megatron_longpo.model.kernel_calls import KERNELS
from megatron_longpo.model.logprob import token_logprobs

Row = dict[str, Any]


def sharing() -> Iterator[Row]:
    """Two full passes against one shared, both with full recomputation, and shared with attention kept."""
    size = scale()
    model = size.model()
    for trunk in size.trunks:
        for branch in size.branches:
            yield sharing_at(model, size, trunk, branch)


def sharing_at(model: GPTModel, size: Scale, trunk: int, branch: int) -> Row:
    """At one length."""
    sides = {
        "two passes": lambda: _two(model, trunk, branch),
        "shared": lambda: _shared(model, trunk, branch, keep_attention=False),
        "shared, attention kept": lambda: _shared(model, trunk, branch, keep_attention=True),
    }
    difference = compare(model, {name: sides[name] for name in ("two passes", "shared, attention kept")})
    return {
        "trunk": trunk,
        "branch": branch,
        "difference": difference,
        "steps": {name: timed(model, side, size.repeats, warm_up=False) for name, side in sides.items()},
        "flops": flops(size, trunk, branch),
    }


def layer() -> Iterator[Row]:
    """What one layer more costs a step that keeps attention, at the longest trunk."""
    size = scale()
    trunk, branch = size.trunks[LONGEST], size.branches[TYPICAL]
    for layers in (1, 2):
        model = size.model(layers)
        step = timed(model, lambda model=model: _shared(model, trunk, branch, keep_attention=True), size.repeats)
        yield {"trunk": trunk, "branch": branch, "layers": layers, **step, "flops": flops(size, trunk, branch, layers)}
        del model


def attention_kernels() -> Iterator[Row]:
    """A step with every flash kernel that can run here, and with Transformer Engine where it is installed."""
    size = scale()
    trunk, branch = size.trunks[MIDDLE], size.branches[TYPICAL]
    model = size.model()
    weight = next(model.parameters())
    able = (one.name for one in KERNELS if not one.lacks(weight.device, weight.dtype, model.config.kv_channels or 0))
    for name in (kernels.AUTO, *(name for name in able if name != "plain")):
        kernels.use_only(name)
        try:
            step = timed(model, lambda: _shared(model, trunk, branch, keep_attention=False), size.repeats)
        finally:
            kernels.use_only(kernels.AUTO)
        yield {"trunk": trunk, "branch": branch, "kernel": name, **step}
    if find_spec("transformer_engine"):
        del model
        other = size.model(transformer_impl="transformer_engine")
        _recompute(other)
        step = timed(other, lambda: shared_pass(other, random_pair(trunk, branch)), size.repeats)
        yield {"trunk": trunk, "branch": branch, "kernel": "transformer_engine", **step}


def exchanges() -> Iterator[Row]:
    """A step at the longest trunk with every way of sharing its attention among the ranks."""
    size = scale()
    trunk, branch = size.trunks[LONGEST], size.branches[TYPICAL]
    for name in ("p2p", "all_gather", "a2a"):
        model = size.model(cp_comm_type=(name,))
        _recompute(model)
        step = timed(model, lambda model=model: shared_pass(model, random_pair(trunk, branch), True), size.repeats)
        yield {"trunk": trunk, "branch": branch, "exchange": name, **step, "flops": flops(size, trunk, branch)}
        del model


def head() -> Iterator[Row]:
    """Memory of the log-prob head beyond its inputs and their gradients, which are as Megatron's DDP keeps them."""
    tokens, hidden, vocab = scale().head
    device, dtype = torch.cuda.current_device(), torch.float32 if platform.is_cpu() else torch.bfloat16
    states = torch.randn(tokens, 1, hidden, device=device, dtype=dtype, requires_grad=True)
    weight: Any = torch.randn(vocab, hidden, device=device, dtype=dtype).mul_(0.02).requires_grad_()
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight, dtype=torch.float32), False
    rows, labels = torch.arange(tokens, device=device), torch.randint(vocab, (tokens,), device=device)
    group = parallel_state.get_tensor_model_parallel_group()
    began = time.perf_counter()
    peak = peak_bytes(
        lambda: token_logprobs(states, weight, rows, labels, vocab, group, sequence_parallel=False).sum().backward()
    )
    torch.cuda.synchronize()
    yield {
        "tokens": tokens,
        "hidden": hidden,
        "vocab": vocab,
        "seconds": time.perf_counter() - began,
        "gib_beyond": (peak - states.nbytes - weight.nbytes) / 2**30,
        "gib_of_logits": 4 * tokens * vocab / 2**30,
    }


def timed(model: GPTModel, side: Callable[[], Tensor], repeats: int, warm_up: bool = True) -> Row:
    """Seconds of forward and backward, each the slowest rank's; GiB at the peak. ``warm_up``: one is not counted."""
    seconds: list[float] = []
    for _ in range(repeats + warm_up):
        model.zero_grad()
        if not platform.is_cpu():
            torch.cuda.reset_peak_memory_stats()
        dist.barrier()
        began = time.perf_counter()
        side().backward()
        torch.cuda.synchronize()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    peak = 0 if platform.is_cpu() else torch.cuda.max_memory_allocated()
    return {"seconds": seconds[-repeats:], "peak_gib": peak / 2**30}


def flops(size: Scale, trunk: int, branch: int, layers: int | None = None) -> dict[str, float]:
    """Of forward and backward, nothing computed again: what is computed, and what two full passes would."""
    options, lengths = size.options(layers), np.array([[trunk, branch, branch]])
    return {
        "shared": 3 * float(tree_flops(options, lengths)[0]),
        "separate": 3 * float(separate_flops(options, lengths)[0]),
    }


def _shared(model: GPTModel, trunk: int, branch: int, *, keep_attention: bool) -> Tensor:
    _recompute(model)
    set_tree_attention(model)
    return shared_pass(model, random_pair(trunk, branch), keep_attention)


def _two(model: GPTModel, trunk: int, branch: int) -> Tensor:
    _recompute(model)
    return two_passes(model, trunk, branch, parallel_state.get_context_parallel_group())


def _recompute(model: GPTModel) -> None:
    config: Any = model.config
    config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
