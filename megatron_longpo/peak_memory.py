"""The most memory that this process held since a moment: of its GPU, or without one resident in the machine's."""

from contextlib import suppress
from pathlib import Path

import torch

from megatron_longpo import platform


class PeakMemory:
    """Counts from its making on. What is held by then counts in full on a GPU, where it is tensors, and not on a CPU,
    where it is mostly code."""

    def __init__(self) -> None:
        self._held = self._files = 0
        if not platform.is_cpu():
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):  # Linux: the peak is what is resident now; a container may forbid it
            Path("/proc/self/clear_refs").write_text("5")
        self._held, self._files = _resident("VmRSS"), _resident("RssFile")

    def bytes(self) -> int:
        """The peak so far; 0 where the system does not say."""
        if not platform.is_cpu():
            return platform.peak_memory()
        code = _resident("RssFile") - self._files  # libraries that have been used since
        return max(0, platform.peak_memory() - self._held - code)


def _resident(field: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
