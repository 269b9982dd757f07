# megatron/core/models/gpt/gpt_model.py (Megatron-Core 0.19.2).
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

class GPTModel(nn.Module):
    config: TransformerConfig
    decoder: Any
    rotary_pos_emb: nn.Module
    def __init__(self, **arguments: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def sharded_state_dict(self) -> dict[str, Any]: ...
