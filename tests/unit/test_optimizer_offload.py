"""RMSprop under --optimizer-cpu-offload, in Megatron's own optimizer and through its checkpoints, without a GPU.

Megatron tells the two sides apart by ``Tensor.is_cuda``. Here every tensor says that it is on the GPU, but those that
came from ``Tensor.cpu()``. What this does not cover: streams, pinned memory and the copies between two real memories.
"""

import tempfile
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.training import training

from megatron_longpo import platform
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.optimizer import RMSprop, use_rmsprop
from tests.ranks import run_ranks

SHAPE = megatron_options(
    {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    }
)
METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
NUM_STEPS = 6


def tell_two_memories_apart() -> None:
    tensor: Any = torch.Tensor

    def marked(value: Any) -> Any:
        value.is_on_host = True
        return value

    def passing_the_mark_on(method: Any) -> Any:
        return lambda self, *args, **kwargs: (
            marked(method(self, *args, **kwargs)) if hasattr(self, "is_on_host") else method(self, *args, **kwargs)
        )

    for name in ("detach", "clone", "float"):
        setattr(tensor, name, passing_the_mark_on(getattr(tensor, name)))
    tensor.is_cuda = property(lambda self: not hasattr(self, "is_on_host"))
    tensor.cpu = lambda self: marked(self.detach().clone())
    tensor.pin_memory = lambda self: self
    platform._Inert.record_event = lambda self: self  # type: ignore[attr-defined]


def build(fraction: float) -> tuple[DistributedDataParallel, Any]:
    """A small bf16 model and its optimizer, ``fraction`` of it offloaded."""
    config = transformer_config(SHAPE, tensor=1, pipeline=1, sequence=False, dtype=torch.bfloat16)
    torch.manual_seed(0)
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    model = DistributedDataParallel(
        config,
        ddp_config,
        build_model(config, ModelShape.of(SHAPE, RopeParameters(rope_theta=1e4), multiple=1)).bfloat16(),
    )
    is_offloaded = fraction > 0
    settings = OptimizerConfig(
        lr=1e-2, min_lr=0.0, weight_decay=0.1, bf16=True, use_distributed_optimizer=True,
        optimizer_cpu_offload=is_offloaded, use_precision_aware_optimizer=is_offloaded,
        optimizer_offload_fraction=fraction, pin_cpu_grads=False, pin_cpu_params=False,
    )  # fmt: skip
    optimizer = training.get_megatron_optimizer(settings, [model])
    (inner,) = (part.optimizer for part in optimizer.chained_optimizers)
    if is_offloaded:
        assert isinstance(inner, HybridDeviceOptimizer)
        assert {type(part) for part in inner.sub_optimizers} == {RMSprop}
        assert bool(inner.cpu_optimizers) and bool(inner.gpu_optimizer) == (fraction < 1)
    return model, optimizer


def through_a_checkpoint(model: DistributedDataParallel, optimizer: Any, fraction: float) -> Any:
    """The same model and optimizer, built anew and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        weights: Any = model.module.sharded_state_dict(metadata=METADATA)
        state = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, metadata=METADATA)}
        dist_checkpointing.save(state, folder)
        model, optimizer = build(fraction)
        weights = model.module.sharded_state_dict(metadata=METADATA)
        wanted = optimizer.sharded_state_dict(weights, is_loading=True, metadata=METADATA)
        loaded = dist_checkpointing.load({"model": weights, "optimizer": wanted}, folder)
    model.module.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    return model, optimizer


def course(fraction: float) -> list[torch.Tensor]:
    """The weights after six steps of random gradients, with a checkpoint loaded half way."""
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    tell_two_memories_apart()
    use_rmsprop(alpha=0.99)
    model, optimizer = build(fraction)
    generator = torch.Generator().manual_seed(1)
    for step in range(NUM_STEPS):
        if step == NUM_STEPS // 2:
            model, optimizer = through_a_checkpoint(model, optimizer, fraction)
        for parameter in model.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()
    return [parameter.detach().float() for parameter in model.parameters()]


@pytest.mark.parametrize("fraction", [pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_offloaded_equals_not_offloaded(fraction: float) -> None:
    """To the bit: the same fp32 operations on the same numbers."""
    ours, theirs = run_ranks(course, 1, fraction)[0], run_ranks(course, 1, 0.0)[0]
    assert len(ours) > 5
    for offloaded, kept in zip(ours, theirs, strict=True):
        assert torch.equal(offloaded, kept)
