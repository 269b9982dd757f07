"""The rotary settings of a model in Hugging Face's own terms, and what transformers computes from them."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeParameters:
    """What ``rope_parameters`` of a config.json says (transformers 5); None where it says nothing.

    Made from a file or an option by hf/rope.py, which checks it.
    """

    rope_type: str = "default"
    """default, linear, llama3 or yarn."""
    rope_theta: float
    """Base of the rotary frequencies."""
    factor: float | None = None
    """How many times longer the context becomes."""
    original_max_position_embeddings: int | None = None
    """Tokens before the scaling (llama3, yarn)."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    """llama3: wavelengths between original / high and original / low are interpolated in part."""
    attention_factor: float | None = None
    """yarn: multiplies cos and sin; by default 0.1 ln(factor) + 1."""
    beta_fast: float | None = None
    beta_slow: float | None = None
    """yarn: turns within the original context, above fast kept (32), below slow interpolated in full (1)."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """yarn: the attention factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)."""
    truncate: bool | None = None
    """yarn: the bounds between kept and interpolated are rounded to whole dims (true)."""

    def as_dict(self) -> dict[str, Any]:
        """The ``rope_parameters`` of a config.json: what is said, and nothing else."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        rest = (f"{name} {value}" for name, value in self.as_dict().items() if name != "rope_type")
        return ", ".join((self.rope_type, *rest))

    def frequencies(self, head_dim: int, max_position_embeddings: int) -> "tuple[Tensor, float]":
        """Inverse frequencies (fp32 [head_dim / 2], radians a token) and the factor of cos and sin.

        Computed by transformers itself, in one class for all types (models/llama/modeling_llama.py, transformers 5);
        Mistral's and Qwen2's are copies of it. ``max_position_embeddings`` changes no number: transformers warns where
        it does not agree with the scaling.
        """
        from transformers import LlamaConfig  # slow to import, and needed only where a model is built
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = LlamaConfig(
            head_dim=head_dim, rope_parameters=self.as_dict(), max_position_embeddings=max_position_embeddings
        )
        rotary = LlamaRotaryEmbedding(config)
        return rotary.inv_freq, cast(float, rotary.attention_scaling)  # pyright: ignore[reportUnknownMemberType]
