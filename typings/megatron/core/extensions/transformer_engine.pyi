# megatron/core/extensions/transformer_engine.py (Megatron-Core 0.19.2).
from typing import Any

from torch import Tensor, nn

class TENorm(nn.Module): ...

class TEDotProductAttention(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
