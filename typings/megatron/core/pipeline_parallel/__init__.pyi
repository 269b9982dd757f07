# megatron/core/pipeline_parallel/schedules.py (Megatron-Core 0.19.2).
from collections.abc import Callable
from typing import Any

def get_forward_backward_func(pp_size: int | None = ..., vp_size: int | None = ...) -> Callable[..., Any]: ...
