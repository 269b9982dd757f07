"""How fast a step ran: tokens, FLOPs, and the share of what the GPU could do at its best (MFU).

Two counts of FLOPs. The true one is of what is computed: a trunk once, whatever hangs on it. The pair-equivalent one is
of what the same pairs would be as separate sequences, each branch behind a trunk of its own: it compares with programs
that compute them so. Both are three forward passes (forward, and backward which is two); what is recomputed to save
memory is never counted, nor is padding.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PEAKS = (
    (r"\bB200\b", 2250.0),
    (r"\bH200 NVL\b", 835.5),
    (r"\bH200\b", 989.5),
    (r"\bH100 NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756.5),
    (r"\bH100\b", 989.5),
    (r"\bA100\b", 312.0),
)
"""Device names and dense bf16 (or fp16) TFLOP/s, from NVIDIA's data sheets; the first that matches counts."""


def peak_tflops(device: str) -> float | None:
    """What a device of that name can do in bf16 at its best, TFLOP/s; None where this is not known, or of a part (MIG).

    Args:
        device: as ``torch.cuda.get_device_name`` says it.
    """
    if re.search(r"\bMIG\b", device):
        return None
    return next((peak for name, peak in PEAKS if re.search(name, device)), None)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Speed of a run's steps."""

    flops: Callable[[], tuple[float, float]]
    """FLOPs of the last step over all ranks: true, and pair-equivalent."""
    num_ranks: int
    peak: float | None
    """TFLOP/s of a GPU at its best; None where nobody said."""

    def of_step(self, num_tokens: Mapping[str, int], seconds: float) -> dict[str, float | dict[str, float]]:
        """Numbers of the step that has just ended, by their names in the metrics file.

        Args:
            num_tokens: by kind (step_metrics.TOKEN_KINDS), over all ranks.
        """
        true, separate = (flops / seconds / self.num_ranks / 1e12 for flops in self.flops())
        return {
            "tokens_per_second": {kind: number / seconds for kind, number in num_tokens.items()},
            "padding_share": num_tokens["padding"] / sum(num_tokens.values()),
            "tflops": true,
            "pair_equivalent_tflops": separate,
            **({"mfu": true / self.peak, "pair_equivalent_mfu": separate / self.peak} if self.peak else {}),
        }
