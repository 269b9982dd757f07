"""A whole step on a GPU: torch's kernels and Transformer Engine's, in bf16, against the Hugging Face model in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_longpo.model.forward import PackInput, pack
from tests.gpu.measured import Measured
from tests.gpu.models import IMPLS, VOCAB, log_probs, pair_tree, random_mistral

TRUNK, BRANCH = 500, 40
EMBEDDING = "embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_mistral(tmp_path_factory.mktemp("model"))


def random_batch(device: torch.device) -> tuple[PackInput, list[Tensor]]:
    """Two pairs in a micro-batch padded to 16 tokens, and their ids: trunk, chosen, rejected of each."""
    generator = torch.Generator().manual_seed(0)
    pairs, ids = [], []
    for trunk in (TRUNK, 33):
        parts = [torch.randint(VOCAB, (length,), generator=generator) for length in (trunk, BRANCH, BRANCH + 7)]
        parts[2][0] = parts[1][0]
        pairs.append(pair_tree(*parts))
        ids += parts
    return pack(pairs, multiple=16).to(device), ids


def oracle(folder: Path, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The log-probs of the responses from separate full sequences in fp32, and the gradient of the embedding."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    rows = []
    for trunk, *branches in (ids[:3], ids[3:]):
        for branch in branches:
            sequence = torch.cat((trunk, branch))
            logp = model(sequence[None]).logits[0].log_softmax(-1)
            rows.append(logp[:-1].gather(1, sequence[1:, None])[len(trunk) :, 0])
    logp_N = torch.cat(rows)
    logp_N.sum().backward()
    return logp_N.detach(), model.get_input_embeddings().weight.grad


@pytest.mark.parametrize("impl", IMPLS)
def test_equals_the_hugging_face_model(
    impl: str,
    imported: Path,
    device: torch.device,
    dtype: torch.dtype,
    one_rank: dist.ProcessGroup,
    measured: Measured,
) -> None:
    """0.1 nats on log-probs of about -6: bf16 keeps 8 bits of the hidden states, whose errors two layers add up.

    The embedding's gradient has passed everything; 5% of its norm are the same 8 bits there and back.
    """
    batch, ids = random_batch(device)
    found, grads = log_probs(imported / "imported", batch, one_rank, impl, dtype)
    expected, embedding = oracle(imported / "hf", ids)
    half = dtype is torch.bfloat16
    measured({"largest difference, nats": (found - expected).abs().max().item()}, 0.1 if half else 1e-4)
    measured({"mean difference, nats": (found - expected).abs().mean().item()}, 0.02 if half else 1e-5)
    difference = torch.linalg.norm(grads[EMBEDDING] - embedding) / torch.linalg.norm(embedding)
    measured({"embedding's gradient": difference.item()}, 0.05 if half else 1e-4)


def test_keep_attention_equals_full_recomputation(
    imported: Path, device: torch.device, dtype: torch.dtype, one_rank: dist.ProcessGroup, measured: Measured
) -> None:
    """The same forward pass, to the bit. A GPU's backward kernels add up in no fixed order, so gradients differ by
    their rounding: two runs of one kind are held against each other beside it."""
    batch, _ = random_batch(device)
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}

    def run(keep: bool, **recompute: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return log_probs(imported / "imported", batch, one_rank, "local", dtype, keep, **recompute)

    plain, again, recomputed, kept = run(False), run(False), run(False, **full), run(True, **full)
    for name, other in (("full", recomputed), ("keep-attention", kept)):
        measured({f"{name}: log-probs, nats": (other[0] - plain[0]).abs().max().item()}, 0.0)
    measured({"without recomputation, twice": furthest(again[1], plain[1])}, 1e-2)
    measured({"full: gradients": furthest(recomputed[1], plain[1])}, 1e-2)
    measured({"keep-attention: gradients": furthest(kept[1], plain[1])}, 1e-2)


def furthest(grads: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of any parameter's gradient, as part of its norm."""
    return max((torch.linalg.norm(grads[n] - others[n]) / torch.linalg.norm(others[n])).item() for n in others)


@pytest.mark.parametrize("impl", IMPLS[1:])
def test_fp8(impl: str, imported: Path, device: torch.device, one_rank: dist.ProcessGroup, measured: Measured) -> None:
    """Smoke: FP8 matrix products keep 3 bits, so their log-probs are near bf16's on average, and not the same."""
    batch, _ = random_batch(device)
    rest = (imported / "imported", batch, one_rank, impl, torch.bfloat16)
    plain, rough = log_probs(*rest)[0], log_probs(*rest, fp8="hybrid", fp8_recipe="delayed")[0]
    difference = (rough - plain).abs().mean().item()
    measured({"mean difference to bf16, nats": difference}, 0.2)
    assert difference > 0
