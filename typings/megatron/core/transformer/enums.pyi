# megatron/core/transformer/enums.py (Megatron-Core 0.19.2).
from enum import Enum

class AttnMaskType(Enum):
    causal = 2
