# megatron/core/transformer/spec_utils.py (Megatron-Core 0.19.2).
from typing import Any

class ModuleSpec:
    submodules: Any
