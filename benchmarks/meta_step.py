"""A micro-batch of training on meta tensors, counted: model, DDP's buffers, one pair, its LongPO loss, backward."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import meta_device

meta_device.activate()  # before Megatron is imported

from megatron.core import parallel_state  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.pipeline_parallel.schedules import custom_backward, deallocate_output_tensor  # noqa: E402

from benchmarks.memory_tracker import MemoryTracker, Peak  # noqa: E402
from benchmarks.released_models import MISTRAL_7B  # noqa: E402
from benchmarks.small_mistral import loss_of  # noqa: E402
from megatron_longpo.hf.config import megatron_options  # noqa: E402
from megatron_longpo.model.build import ModelShape, build_model, transformer_config  # noqa: E402
from megatron_longpo.model.forward import PackInput, forward_pack, pack, tree_input  # noqa: E402
from megatron_longpo.model.parallel_sizes import ParallelSizes  # noqa: E402
from megatron_longpo.model.rope_parameters import RopeParameters  # noqa: E402
from megatron_longpo.model.targets import tree_logps  # noqa: E402
from megatron_longpo.plan.layer_memory import attention_workspace  # noqa: E402
from megatron_longpo.plan.step_shape import Recompute, StepShape  # noqa: E402

PARTS_BY_LINE = {
    "exchange.py": "communication",
    "mappings.py": "communication",  # Megatron's, of tensor parallelism
    "branches.py:_gather": "communication",  # commits before exchange.py had these two
    "branches.py:_to_owners": "communication",
    "utils.py:get_tensor": "communication",  # Megatron's buffer for gathered inputs
    "logprob.py": "log-prob head",
    "targets.py": "inputs and targets",
}
PARTS_BY_MODULE = {
    "self_attention": "attention",
    "input_layernorm": "attention",
    "mlp": "MLP",
    "pre_mlp_layernorm": "MLP",
    "rotary_pos_emb": "inputs and targets",
    "embedding": "embedding",
}
REST = "residual stream"
"""What the layers make between their attention and their MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A step to count."""

    config: dict[str, Any] = field(default_factory=lambda: MISTRAL_7B)
    """Hugging Face's config.json."""
    trunk: int = 131072
    branches: tuple[int, int] = (2048, 2048)
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    """Of these only the optimizer's arithmetic knows."""
    cp_comm_type: str = "p2p"
    rank: int = 0
    """Of the context-parallel ones."""
    recompute: Recompute = "keep-attention"
    kernel: str = "flash"

    def step_shape(self) -> StepShape:
        """The same step for the derivation."""
        return StepShape(
            options=megatron_options(self.config),
            trees=((self.trunk, self.branches),),
            sizes=ParallelSizes(self.tensor, self.pipeline, self.context, [self.cp_comm_type], None),
            data=self.data,
            recompute=self.recompute,
            optimizer="rmsprop",
        )


def count(setting: Setting) -> dict[tuple[str, str], Peak]:
    """Run a micro-batch; the peaks of its phases, forward and backward."""
    tracker = MemoryTracker(PARTS_BY_LINE, _workspace)
    layout = {"tensor": setting.tensor, "pipeline": setting.pipeline, "context": setting.context}
    with meta_device.ranks(tracker, setting.kernel, rank=setting.rank * setting.tensor, **layout):
        model = _model(setting, tracker)
        batch = _batch(setting)
        tracker.mark(_tensors(batch), "inputs and targets")
        tracker.working = [REST]
        tracker.start("forward")
        outputs = [_output(setting, model, batch) for _ in range(setting.pipeline)]
        tracker.start("backward")
        if setting.pipeline == 1:
            outputs[0].backward()
        else:
            hidden = (batch.layout.length // setting.tensor, 1, setting.config["hidden_size"])
            custom_backward(outputs[0], outputs[0].new_empty(hidden))
        tracker.start("end")
    return {kind: peak for kind, peak in tracker.peaks.items() if kind[0] in ("forward", "backward")}


def _output(setting: Setting, model: nn.Module, batch: PackInput) -> Tensor:
    """The loss, or of a pipeline's first stage what it sends on."""
    cp_group = parallel_state.get_context_parallel_group()
    tp_group = parallel_state.get_tensor_model_parallel_group()
    vocab_size = setting.config["vocab_size"]
    logp_N = forward_pack(model, batch, vocab_size, tp_group, setting.recompute == "keep-attention")
    if setting.pipeline > 1:
        deallocate_output_tensor(logp_N, True)  # the hidden states, as Megatron's schedules do
        return logp_N
    (policy,) = tree_logps(logp_N, batch.targets, cp_group)
    chosen, rejected = policy.logp_BK
    return loss_of(chosen, rejected, policy.nll / policy.num_in_nll)


def _model(setting: Setting, tracker: MemoryTracker) -> nn.Module:
    options = megatron_options(setting.config)
    config: Any = transformer_config(
        options,
        tensor=setting.tensor,
        pipeline=setting.pipeline,
        context=setting.context,
        cp_comm_type=(setting.cp_comm_type,),
        sequence=True,
        dtype=torch.bfloat16,
    )
    config.use_cpu_initialization = False
    config.perform_initialization = False
    config.bias_activation_fusion = True  # as Megatron's arguments have it on CUDA: SwiGLU in one kernel
    _set_recompute(config, setting.recompute)
    shape = ModelShape.of(options, RopeParameters(rope_theta=1e7), multiple=128 * setting.tensor)
    model = build_model(config, shape, post_process=setting.pipeline == 1).to(meta_device.META).bfloat16()
    buffers = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(config, buffers, model)
    tracker.mark(model.parameters(), "weights")
    tracker.mark((one.grad_data for one in wrapped.buffers), "gradients")
    _watch(model, tracker)
    return wrapped


def _set_recompute(config: Any, mode: Recompute) -> None:
    if mode in ("full", "keep-attention"):
        config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    elif mode == "selective":
        config.recompute_granularity, config.recompute_modules = "selective", ["core_attn"]


def _batch(setting: Setting) -> PackInput:
    group = parallel_state.get_context_parallel_group()
    names = ("trunk", "chosen", "rejected")
    lengths = dict(zip(names, (setting.trunk, *setting.branches), strict=True))
    conversation = {name: torch.zeros(length, dtype=torch.int64) for name, length in lengths.items()}
    conversation |= {f"{name}_spans": torch.tensor([[1, lengths[name]]]) for name in names[1:]}
    tree = tree_input(conversation, names[1:], nll_tokens="all", cp_rank=group.rank(), cp_size=group.size())
    return pack([tree], setting.tensor).to(meta_device.META)


def _tensors(batch: PackInput) -> list[Tensor]:
    own = (batch.tokens_L, batch.positions_L, batch.rows_N, batch.labels_N)
    return [*own, *(x for one in batch.targets for x in (one.rows_N, one.labels_N, one.segment_N, one.in_nll_N))]


def _watch(model: GPTModel, tracker: MemoryTracker) -> None:
    """Tell the tracker which part is at work, and which tensors are kept from layer to layer."""
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if part := PARTS_BY_MODULE.get(name):
            module.register_forward_pre_hook(lambda *_, part=part: tracker.working.append(part))
            module.register_forward_hook(lambda _, __, out, part=part: _leave(tracker, part, out))
        if path.startswith("decoder.layers.") and name.isdigit():
            module.register_forward_pre_hook(lambda *called: _enter_layer(tracker, *called), with_kwargs=True)
        if name == "core_attention":
            module.register_forward_hook(lambda one, _, kwargs, __: _mark_kept(tracker, one, kwargs), with_kwargs=True)


def _enter_layer(tracker: MemoryTracker, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tracker.working[0] = REST  # a layer that is computed again
    tracker.mark([*args, kwargs.get("hidden_states")][:1], "layer inputs")


def _leave(tracker: MemoryTracker, part: str, out: Any) -> None:
    """In the backward pass the part is at work again once the gradient of its output is there."""
    tracker.working.pop()
    first = out[0] if isinstance(out, tuple) else out
    if first.requires_grad:
        first.register_hook(lambda _: tracker.working.__setitem__(0, part))


def _mark_kept(tracker: MemoryTracker, module: Any, kwargs: dict[str, Any]) -> None:
    saved = kwargs["packed_seq_params"].saved_attention or {}
    tracker.mark(saved.get(module.layer_number, ()), "kept attention")


def _workspace(func: Any, args: Sequence[Any]) -> int:
    if func is not torch.ops.aten._flash_attention_backward.default:
        return 0
    _, q_1THD, k_1UGD = args[:3]
    _, queries, heads, head_dim = q_1THD.shape
    _, keys, groups, _ = k_1UGD.shape
    return attention_workspace(queries, keys, heads, groups, head_dim, q_1THD.element_size())
