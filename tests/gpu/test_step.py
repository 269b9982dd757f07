"""A whole step on a GPU: torch's kernels and Transformer Engine's, in bf16, against the Hugging Face model in fp32."""

import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import PackInput, TreeInput, forward_pack, pack, tree_input
from megatron_longpo.model.rope_parameters import RopeParameters
from tests.unit.hf.models import save_tokenizer

VOCAB, TRUNK, BRANCH = 256, 500, 40
IMPLS = [
    "local",
    pytest.param(
        "transformer_engine",
        marks=pytest.mark.skipif(not find_spec("transformer_engine"), reason="needs Transformer Engine"),
    ),
]
MISTRAL_7B_LAYER = megatron_options(
    {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32768,
        "max_position_embeddings": 262144,
    }
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    yield parallel_state.get_tensor_model_parallel_group()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral as a Hugging Face folder, and imported."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=0.05,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "hf")
    save_tokenizer(folder / "hf")
    import_hf(folder / "hf", folder / "imported")
    return folder


def pair_tree(trunk: Tensor, chosen: Tensor, rejected: Tensor, nll_tokens: Any = None) -> TreeInput:
    """A pair with one response a branch, all of it but the first token."""
    conversation = {"trunk": trunk, "chosen": chosen, "rejected": rejected}
    conversation |= {f"{name}_spans": torch.tensor([[1, len(conversation[name])]]) for name in ("chosen", "rejected")}
    return tree_input(conversation, ("chosen", "rejected"), nll_tokens=nll_tokens)


def random_batch() -> tuple[PackInput, list[Tensor]]:
    """Two pairs in a micro-batch padded to 16 tokens, and their ids: trunk, chosen, rejected of each."""
    generator = torch.Generator().manual_seed(0)
    pairs, ids = [], []
    for trunk in (TRUNK, 33):
        parts = [torch.randint(VOCAB, (length,), generator=generator) for length in (trunk, BRANCH, BRANCH + 7)]
        parts[2][0] = parts[1][0]
        pairs.append(pair_tree(*parts))
        ids += parts
    return pack(pairs, multiple=16).to("cuda"), ids


def log_probs(folder: Path, batch: PackInput, group: dist.ProcessGroup, impl: str, **changes: Any) -> Tensor:
    """Of the responses, and a backward pass of their sum; fp32, on the CPU."""
    hf_config = read_hf_config(folder)
    options = megatron_options(hf_config)
    config = transformer_config(
        options, tensor=1, pipeline=1, sequence=False, dtype=torch.bfloat16, transformer_impl=impl
    )
    for name, value in changes.items():
        setattr(config, name, value)
    shape = ModelShape.of(options, rope_parameters(hf_config), multiple=1)
    model = build_model(config, shape).bfloat16().cuda()
    weights = dist_checkpointing.load(model.sharded_state_dict(), str(folder / "release"))
    model.load_state_dict(weights, strict=False)
    logp_N = forward_pack(model, batch, VOCAB, group)
    logp_N.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return logp_N.detach().float().cpu()


@torch.no_grad()
def oracle(folder: Path, ids: list[Tensor]) -> Tensor:
    """The same from separate full sequences in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    rows = []
    for trunk, *branches in (ids[:3], ids[3:]):
        for branch in branches:
            sequence = torch.cat((trunk, branch))
            logp = model(sequence[None]).logits[0].log_softmax(-1)
            rows.append(logp[:-1].gather(1, sequence[1:, None])[len(trunk) :, 0])
    return torch.cat(rows)


@pytest.mark.parametrize("impl", IMPLS)
def test_equals_the_hugging_face_model(impl: str, imported: Path, one_rank: dist.ProcessGroup) -> None:
    """0.1 nats on log-probs of about -6: bf16 keeps 8 bits of the logits, whose errors two layers add up."""
    batch, ids = random_batch()
    found = log_probs(imported / "imported", batch, one_rank, impl)
    expected = oracle(imported / "hf", ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("impl", IMPLS[1:])
def test_fp8(impl: str, imported: Path, one_rank: dist.ProcessGroup) -> None:
    """Smoke: FP8 matrix products keep 3 bits, so their log-probs are near bf16's on average, and not the same."""
    batch, _ = random_batch()
    plain = log_probs(imported / "imported", batch, one_rank, impl)
    rough = log_probs(imported / "imported", batch, one_rank, impl, fp8="hybrid", fp8_recipe="delayed")
    assert 0 < (rough - plain).abs().mean() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_memory_at_128k(impl: str, one_rank: dist.ProcessGroup) -> None:
    """Two layers of a Mistral-7B, one pair of 131,072 + 2 x 2,048 tokens, full recomputation.

    Must exist: 0.7e9 parameters in bf16 with their gradients (2.8 GB), the inputs of both layers (2 x 1.1 GB), and one
    layer's own activations while it is computed again, about 280 KB a token (36 GB). Nothing of size S x S (17e9) or
    S x V (4e9 elements) fits between that and 48 GiB.
    """
    trunk, branch = 131072, 2048
    config = transformer_config(
        MISTRAL_7B_LAYER, tensor=1, pipeline=1, sequence=False, dtype=torch.bfloat16, transformer_impl=impl
    )
    config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    shape = ModelShape.of(MISTRAL_7B_LAYER, RopeParameters(rope_theta=1e7), multiple=1)
    model = build_model(config, shape).bfloat16().cuda()
    ids = torch.randint(32768, (trunk + 2 * branch,))
    pair = pair_tree(ids[:trunk], ids[trunk:-branch], ids[-branch:], "all")
    torch.cuda.reset_peak_memory_stats()
    forward_pack(model, pack([pair]).to("cuda"), 32768, one_rank, keep_attention=impl == "local").sum().backward()
    peak = torch.cuda.max_memory_allocated()
    del model
    gc.collect()
    assert peak < 48 * 2**30, f"{peak / 2**30:.1f} GiB"
