"""Where a result comes from: the commit, the processor, and the GPU with what drives it."""

import os
import platform as machine
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = re.compile(r"apex|flash[-_]attn.*|megatron[-_]core|nvidia[-_]cudnn.*|transformer[-_]engine.*|transformers")
"""Distributions whose version decides what a GPU runs."""


def commit() -> str:
    """Of this checkout, with ``-dirty`` where files differ from it; "unknown" outside one."""
    return _said_by("git", "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def processor() -> str:
    """Its name and number of cores."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return machine.processor()


def gpu() -> dict[str, Any]:
    """The current CUDA device and the software on it; call it where there is one."""
    import torch

    named = {one.metadata["Name"]: one.version for one in distributions()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "num_gpus": torch.cuda.device_count(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "python": machine.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: named[name] for name in sorted(named) if PACKAGES.fullmatch(name)},
    }


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # there is no such program
        return ""
