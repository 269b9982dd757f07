"""How large the measurements are: on a GPU, and in a rehearsal on a CPU, which runs the same code on little of it."""

from dataclasses import dataclass
from typing import Any

from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from benchmarks.common import platform
from benchmarks.released_models import MISTRAL_7B
from benchmarks.small_mistral import VOCAB_SIZE, random_mistral
from megatron_longpo.hf.config import megatron_options


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes, in tokens where nothing else is said."""

    shape: dict[str, Any]
    """Of a Hugging Face config.json; its layers are ``layers``, its vocabulary VOCAB_SIZE."""
    layers: int
    trunks: tuple[int, ...]
    branches: tuple[int, ...]
    head: tuple[int, int, int]
    """Of the log-prob head: scored tokens, hidden size, vocabulary."""
    repeats: int = 2

    def options(self, layers: int | None = None) -> dict[str, Any]:
        """Megatron's, of a model of that width."""
        shape = {**self.shape, "num_hidden_layers": layers or self.layers, "vocab_size": VOCAB_SIZE}
        return megatron_options(shape)

    def model(self, layers: int | None = None, **config: Any) -> GPTModel:
        """Random weights, for the ranks that there are. ``config``: of transformer_config."""
        return random_mistral(parallel_state.get_context_parallel_world_size(), self.options(layers), **config)


GPU = Scale(
    shape=MISTRAL_7B | {"model_type": "llama"},
    layers=2,
    trunks=(32768, 65536, 131072),
    branches=(512, 2048, 8192),
    head=(131072, 3584, 152064),
)
REHEARSAL = Scale(
    shape=GPU.shape
    | {
        "hidden_size": 128,
        "intermediate_size": 448,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
    },
    layers=2,
    trunks=(128, 256, 512),
    branches=(8, 32, 64),
    head=(512, 64, 1024),
    repeats=1,
)
MIDDLE, LONGEST, TYPICAL = 1, -1, 1
"""Trunks and the branch, by their places, of what is measured at one length only."""


def scale() -> Scale:
    """The one of this machine."""
    return REHEARSAL if platform.is_cpu() else GPU
