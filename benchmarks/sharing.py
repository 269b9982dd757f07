"""What one shared pass saves: the time of two full passes over the time of one, for one pair, forward and backward.

    python -m benchmarks.sharing [--trunk 4096] [--branch 256] [--repeats 5]

Both sides are the same Megatron model (a random 30M-parameter Mistral), the same log-prob head and the same objective.
The two-pass side runs [trunk, chosen] and [trunk, rejected] as two ordinary causal sequences with torch's
scaled_dot_product_attention, as DPO trainers do. Before anything is timed, loss and gradients of both must agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn

from benchmarks.common import one_rank, write_result
from megatron_longpo import platform
from megatron_longpo.model.attention import PairAttention, PairParams
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import HeadContext, PackInput, _logprob_head, forward_pack, pack, pair_input
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.model.targets import pair_logps
from megatron_longpo.objective.longpo import Objective, margin_by_turn, pair_loss

OPTIONS: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 448,
    "ffn_hidden_size": 1536,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "kv_channels": 56,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "swiglu": True,
    "untie_embeddings_and_output_weights": True,
    "vocab_size": 8192,
    "max_position_embeddings": 131072,
}
OBJECTIVE = Objective(beta=0.5, pref_coef=1.0)
REFERENCE = -1000.0
"""Any number: what matters is that both sides subtract the same."""


class CausalAttention(nn.Module):
    """Core attention of the two-pass side: one ordinary causal sequence."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.permute(2, 0, 1, 3).flatten(2)


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, default=4096, help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with one_rank():
        write_result("sharing", measure(args.trunk, args.branch, args.repeats))


def measure(trunk: int, branch: int, repeats: int) -> dict[str, Any]:
    """Check that both sides agree, then time them in turn; seconds."""
    dtype = torch.float32 if platform.is_cpu() else torch.bfloat16
    config = transformer_config(OPTIONS, tensor=1, pipeline=1, sequence=False, dtype=dtype)
    shape = ModelShape.of(OPTIONS, RopeParameters(rope_theta=1e6), multiple=1)
    model = build_model(config, shape).to(torch.cuda.current_device())
    pair = random_pair(trunk, branch)
    sides: dict[str, Callable[[], Tensor]] = {
        "two_passes": lambda: two_passes(model, pair),
        "shared": lambda: shared_pass(model, pair),
    }
    difference = compare(model, sides)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side().backward()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    ratios = [two / one for two, one in zip(times["two_passes"], times["shared"], strict=True)]
    num_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{num_parameters / 1e6:.1f}M parameters, trunk {trunk}, branches {branch}; largest difference {difference:.1e}"
    )
    for name, seconds in times.items():
        print(f"{name:12} median {statistics.median(seconds):.3f} s")
    print(f"two passes / shared: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    return {
        "num_parameters": num_parameters,
        "trunk": trunk,
        "branch": branch,
        "seconds": times,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "largest_relative_difference": difference,
    }


def random_pair(trunk: int, branch: int) -> PackInput:
    """A pair with one response of branch - 1 tokens on each side."""
    torch.manual_seed(0)
    ids = torch.randint(OPTIONS["vocab_size"], (trunk + 2 * branch,))
    ids[trunk + branch] = ids[trunk]  # both branches open with the same token
    spans = torch.tensor([[1, branch]])
    chosen = ids[trunk : trunk + branch]
    pair = pair_input(ids[:trunk], chosen, ids[trunk + branch :], spans, spans, nll_over_all=True)
    return pack([pair]).to(torch.cuda.current_device())


def shared_pass(model: GPTModel, pair: PackInput) -> Tensor:
    """The product's step: loss of one pair."""
    _set_attention(model, PairAttention)
    logp = forward_pack(model, pair, OPTIONS["vocab_size"], parallel_state.get_tensor_model_parallel_group())
    (policy,) = pair_logps(logp, pair.targets)
    return _loss(policy.chosen_K.sum(), policy.rejected_K.sum(), policy.nll)


def two_passes(model: GPTModel, pair: PackInput) -> Tensor:
    """The same loss from two full sequences."""
    _set_attention(model, CausalAttention)
    (layout,) = pair.layout.pairs
    trunk = layout.trunk
    chosen_logp, rejected_logp = (
        _sequence_logp(model, torch.cat((pair.tokens_L[:trunk], pair.tokens_L[part])), first)
        for part, first in zip(layout.branch_slices, (0, trunk), strict=True)
    )
    return _loss(chosen_logp[trunk:].double().sum(), rejected_logp.double().sum(), -chosen_logp.double().mean())


def _sequence_logp(model: GPTModel, ids: Tensor, first: int) -> Tensor:
    """Log-probs of tokens first + 1, first + 2, ... of one ordinary sequence."""
    rows = torch.arange(first, len(ids) - 1, device=ids.device)
    positions = torch.arange(len(ids), device=ids.device)
    return model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=None,
        packed_seq_params=PairParams(qkv_format="sbhd", positions_L=positions),
        output_processor=_logprob_head,
        output_processor_context=HeadContext(
            rows, ids[rows + 1], OPTIONS["vocab_size"], parallel_state.get_tensor_model_parallel_group()
        ),
    )


def _loss(chosen: Tensor, rejected: Tensor, nll: Tensor) -> Tensor:
    reference = torch.full_like(chosen, REFERENCE)
    return pair_loss(margin_by_turn(chosen, rejected, reference, reference), nll, OBJECTIVE).loss


def _set_attention(model: GPTModel, kind: type[nn.Module]) -> None:
    for layer in model.decoder.layers:
        attention = layer.self_attention
        if not isinstance(attention.core_attention, kind):
            attention.core_attention = (
                kind() if kind is CausalAttention else kind(model.config, 1, attention.attn_mask_type, "self")
            )


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
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    model.zero_grad()
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))
    limit = 1e-4 if platform.is_cpu() else 5e-2  # fp32 sums in another order; bf16 has 8 bits
    if worst > limit:
        raise RuntimeError(f"the two sides differ by {worst:.1e}, more than {limit:.0e}: nothing to time")
    return worst


if __name__ == "__main__":
    main()
