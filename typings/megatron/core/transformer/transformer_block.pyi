# megatron/core/transformer/transformer_block.py (Megatron-Core 0.19.2).
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

class TransformerBlockSubmodules:
    def __init__(self, layer_specs: list[ModuleSpec] | None = ..., layer_norm: type | None = ...) -> None: ...

def get_num_layers_to_build(config: TransformerConfig, vp_stage: int | None = ...) -> int: ...
