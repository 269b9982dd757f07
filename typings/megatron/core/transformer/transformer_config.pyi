# megatron/core/transformer/transformer_config.py (Megatron-Core 0.19.2): a dataclass of several hundred
# fields; those that are read or set after it is made.
from typing import Any

class TransformerConfig:
    def __init__(self, **fields: Any) -> None: ...
    kv_channels: int | None
    attention_dropout: float
    window_size: tuple[int, int] | None
    sequence_parallel: bool
    qk_layernorm: bool
    normalization: str
    transformer_impl: str
    softmax_scale: float | None
    variable_seq_lengths: bool
    calculate_per_token_loss: bool
    finalize_model_grads_func: Any
    no_sync_func: Any
    recompute_granularity: str | None
    recompute_method: str | None
    recompute_num_layers: int | None
    recompute_modules: list[str] | None
