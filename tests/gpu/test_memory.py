"""131,072 tokens on one GPU: nothing of size S x S or S x V is made."""

import gc
import time

import pytest
import torch
import torch.distributed as dist

from benchmarks.released_models import MISTRAL_7B
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.model.forward import forward_pack, pack
from megatron_longpo.model.rope_parameters import RopeParameters
from tests.gpu.measured import Measured
from tests.gpu.models import IMPLS, pair_tree

TWO_LAYERS = MISTRAL_7B | {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 32768}
TWO_LAYERS |= {"max_position_embeddings": 262144}
A_SIXTEENTH = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 2, "num_key_value_heads": 1}
A_SIXTEENTH |= {"vocab_size": 2048}


@pytest.mark.parametrize("impl", IMPLS)
def test_memory_at_128k(
    impl: str, device: torch.device, dtype: torch.dtype, one_rank: dist.ProcessGroup, measured: Measured
) -> None:
    """Two layers of a Mistral-7B, one pair of 131,072 + 2 x 2,048 tokens, full recomputation.

    Must exist: 0.7e9 parameters in bf16 with their gradients (2.8 GB), the inputs of both layers (2 x 1.1 GB), and one
    layer's own activations while it is computed again, about 280 KB a token (36 GB). Nothing of size S x S (17e9) or
    S x V (4e9 elements) fits between that and 48 GiB. On a CPU, where memory is not counted, a small model runs.
    """
    full = device.type == "cuda"
    trunk, branch = (131072, 2048) if full else (1024, 64)
    options = megatron_options(TWO_LAYERS | ({} if full else A_SIXTEENTH))
    config = transformer_config(options, tensor=1, pipeline=1, sequence=False, dtype=dtype, transformer_impl=impl)
    config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    shape = ModelShape.of(options, RopeParameters(rope_theta=1e7), multiple=1)
    model = build_model(config, shape).to(dtype).cuda()
    ids = torch.randint(shape.vocab_size, (trunk + 2 * branch,))
    pair = pair_tree(ids[:trunk], ids[trunk:-branch], ids[-branch:], "all")
    batch = pack([pair]).to(device)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    forward_pack(model, batch, shape.vocab_size, one_rank, keep_attention=impl == "local").sum().backward()
    torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30
    del model
    gc.collect()
    measured({"first step, seconds": seconds})
    measured({"peak memory, GiB": peak}, 48.0)
