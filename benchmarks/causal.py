"""The benchmarks' other side: ordinary causal sequences through the same Megatron model, as other trainers run them,
and what holds two sides against each other."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from benchmarks.common import platform
from benchmarks.small_mistral import VOCAB_SIZE
from megatron_longpo.model.attention import TreeAttention, TreeParams
from megatron_longpo.model.forward import HeadContext, _logprob_head
from megatron_longpo.model.targets import Targets, TreeLogps, tree_logps
from megatron_longpo.model.tasks import run
from megatron_longpo.model.trunk import TrunkExchange, trunk_backward, trunk_forward


class CausalAttention(nn.Module):
    """Core attention of one ordinary causal sequence."""

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.group.size() == 1:
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            out = _RingAttention.apply(q, k, v, TrunkExchange(keys=self.group), q.shape[-1] ** -0.5)
        return out.permute(2, 0, 1, 3).flatten(2)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, exchange: TrunkExchange, scale: float) -> Tensor:
        out, lse = run(trunk_forward(q, k, v, exchange, scale))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.exchange, ctx.scale = exchange, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *run(trunk_backward(grad_out, *ctx.saved_tensors, exchange=ctx.exchange, scale=ctx.scale)), None, None


def sequence_logps(model: GPTModel, ids: Tensor, trunk: int, group: ProcessGroup) -> TreeLogps:
    """The log-probs of one ordinary sequence: the response is what follows the branch's first token."""
    padded = len(ids) + -len(ids) % (2 * group.size())
    rows = torch.arange(len(ids) - 1)
    num_response = torch.tensor([[len(ids) - 1 - trunk]])
    segments, in_nll = torch.where(rows >= trunk, 0, 1), torch.ones_like(rows) > 0
    targets = Targets(rows, ids[1:], segments, in_nll, num_response, len(rows))
    chunks = torch.arange(padded).chunk(2 * group.size())
    own = torch.cat((chunks[group.rank()], chunks[-1 - group.rank()])) if group.size() > 1 else torch.arange(padded)
    device = torch.cuda.current_device()
    targets = targets.on_rank(own, padded).each(lambda x: x.to(device))
    tokens = nn.functional.pad(ids, (0, padded - len(ids)))[own].to(device)
    logp = model(
        input_ids=tokens[None],
        position_ids=own[None].to(device),
        attention_mask=None,
        packed_seq_params=TreeParams(qkv_format="sbhd", positions_L=own.to(device)),
        output_processor=_logprob_head,
        output_processor_context=HeadContext(
            targets.rows_N, targets.labels_N, VOCAB_SIZE, parallel_state.get_tensor_model_parallel_group()
        ),
    )
    return tree_logps(logp, [targets], group)[0]


def set_tree_attention(model: GPTModel) -> None:
    """Let the model run trees: the product's side."""
    for layer in model.decoder.layers:
        attention = layer.self_attention
        attention.core_attention = TreeAttention(model.config, layer.layer_number, attention.attn_mask_type, "self")


def set_causal_attention(model: GPTModel, group: ProcessGroup) -> None:
    """Let the model run ordinary causal sequences: the other side."""
    for layer in model.decoder.layers:
        layer.self_attention.core_attention = CausalAttention(group)


def compare(model: GPTModel, sides: dict[str, Callable[[], Tensor]]) -> float:
    """The largest relative difference of loss and gradients; also the warm-up.

    Raises:
        RuntimeError: it is above what rounding explains.
    """
    found = []
    for side in sides.values():
        model.zero_grad()
        loss = side()
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        for gradient in gradients:
            dist.all_reduce(gradient)
        found.append([loss.detach(), *gradients])
    model.zero_grad()
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))
    limit = 1e-4 if platform.is_cpu() else 5e-2  # fp32 sums in another order; bf16 has 8 bits
    if worst > limit:
        raise RuntimeError(f"the two sides differ by {worst:.1e}, more than {limit:.0e}: nothing to time")
    return worst


def seconds_in_turn(sides: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Time forward and backward of all sides in turn; a step is as slow as the slowest rank."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            dist.barrier()
            start = time.perf_counter()
            side().backward()
            torch.cuda.synchronize()
            dist.barrier()
            times[name].append(time.perf_counter() - start)
    return times
