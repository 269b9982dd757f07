"""What GPUs have and do: the figures that a plan's times come from. None was measured by this project.

Rates are those that kernels reach on long sequences, not peaks. A GPU that is not here is a JSON file with the same
fields (``read_kind``).
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.strict_json import read_json_object

GIB, TERA, GIGA = 2**30, 1e12, 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuKind:
    """A kind of GPU, in a machine of its kind. FLOP/s are of bf16 without sparsity; bytes/s are of one GPU, one way."""

    name: str
    memory_gib: float
    """What torch sees of it."""
    reserved_gib: float = 3.0
    """Assumed for what is not a tensor: the CUDA context, buffers of NCCL and cuBLAS, gaps between tensors."""
    peak_tflops: float
    """The vendor's figure, by which MFU is counted."""
    matmul_tflops: float
    attention_tflops: dict[str, tuple[float, float]]
    """Kernel (--longpo-attention-kernel) -> forward, backward, with causal attention's half counted; the best first."""
    memory_gbs: float
    link_gbs: float
    """Between the GPUs of a machine."""
    network_gbs: float
    """Between machines."""
    host_gbs: float
    """To the host's memory."""
    gpus_per_node: int = 8

    @property
    def room(self) -> float:
        """Bytes for tensors."""
        return (self.memory_gib - self.reserved_gib) * GIB


_HOPPER: dict[str, Any] = {
    "peak_tflops": 989,
    "matmul_tflops": 650,  # 66% of the peak, as large products of 7B models reach
    # Head size 128, causal, 16K: FlashAttention-3's paper (arXiv 2407.08608), which has FlashAttention-2 beside it.
    "attention_tflops": {"flash3": (620, 550), "flash": (390, 322)},
    "link_gbs": 370,  # NVLink 4 has 450
    "network_gbs": 45,  # 400 Gb/s a GPU
    "host_gbs": 50,
}
_AMPERE: dict[str, Any] = {
    "memory_gib": 79.1,
    "peak_tflops": 312,
    "matmul_tflops": 250,
    "attention_tflops": {"flash": (195, 165)},  # FlashAttention-2's paper (arXiv 2307.08691), head size 128, causal
    "memory_gbs": 2039,
    "network_gbs": 22,  # 200 Gb/s a GPU
    "host_gbs": 25,
}
KINDS = {
    one.name: one
    for one in (
        GpuKind(name="a100-80", **_AMPERE, link_gbs=240),  # NVLink 3 has 300
        GpuKind(name="a800-80", **_AMPERE, link_gbs=160),  # and 200
        GpuKind(name="h100-80", **_HOPPER, memory_gib=79.1, memory_gbs=3350),
        GpuKind(name="h200-141", **_HOPPER, memory_gib=139.8, memory_gbs=4800),
        # Assumed from the ratio of the peaks, but for attention's forward rate: FlashAttention-4's announcement.
        GpuKind(
            name="b200-180",
            memory_gib=178.3,
            peak_tflops=2250,
            matmul_tflops=1500,
            attention_tflops={"flash4": (1400, 1000)},
            memory_gbs=8000,
            link_gbs=740,
            network_gbs=45,
            host_gbs=50,
        ),
    )
}


def read_kind(name: str) -> GpuKind:
    """One of KINDS, or the one that a JSON file describes, whose name may be left out.

    Raises:
        UserError: neither; or a field is missing, unknown or not of its type.
    """
    if name in KINDS:
        return KINDS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UserError(f"--kind {name}: choose one of {', '.join(KINDS)}, or give a JSON file (docs/plan.md)")
    found: dict[str, Any] = {"name": path.stem} | read_json_object(path)
    known = {one.name for one in fields(GpuKind)}
    if unknown := sorted(set(found) - known):
        raise UserError(f"{path}: {unknown[0]} is not a field; they are {', '.join(sorted(known))}")
    try:
        kernels = {kernel: (float(a), float(b)) for kernel, (a, b) in found["attention_tflops"].items()}
        numbers = {key: float(value) for key, value in found.items() if key not in ("name", "attention_tflops")}
        kind = GpuKind(name=str(found["name"]), attention_tflops=kernels, **numbers)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        example = json.dumps(asdict(KINDS["h100-80"]))
        raise UserError(f"{path}: {error!r}; such a file looks like {example}") from error
    if not kernels or min(numbers.values()) <= 0 or min(map(min, kernels.values())) <= 0:
        raise UserError(f"{path}: all figures must be above 0, and there must be an attention kernel")
    return kind
