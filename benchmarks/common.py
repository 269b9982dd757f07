"""What every benchmark shares: one Megatron rank, and a raw result that says where it comes from."""

import json
import os
import pickle
import platform as machine
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.origin import commit, processor
from megatron_longpo import platform

platform.activate()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def on_ranks(measure: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
    """What ``measure(*args)`` returns on each of ``num_ranks`` context-parallel ranks, which share the processors."""
    with tempfile.TemporaryDirectory() as name:
        torch.multiprocessing.spawn(_rank_main, (measure, args, num_ranks, Path(name)), nprocs=num_ranks)
        return [pickle.loads((Path(name) / str(rank)).read_bytes()) for rank in range(num_ranks)]


def _rank_main(rank: int, measure: Callable[..., Any], args: tuple[Any, ...], num_ranks: int, folder: Path) -> None:
    if platform.is_cpu():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_ranks))
    else:
        torch.cuda.set_device(rank)
    backend = "gloo" if platform.is_cpu() else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    parallel_state.initialize_model_parallel(context_parallel_size=num_ranks)
    model_parallel_cuda_manual_seed(0)
    (folder / str(rank)).write_bytes(pickle.dumps(measure(*args)))
    dist.destroy_process_group()


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory held during ``work``, beyond what was held before it: on the device, or resident on a CPU.

    Call ``work`` on something small first, or kernels and thread pools are counted too.
    """
    if not platform.is_cpu():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to what is resident now
    before = resident_bytes("VmRSS")
    work()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def write_result(name: str, measured: Any, command: str = "") -> None:
    """Write ``results/NAME.json``: the command, commit, software and hardware beside the raw numbers.

    Args:
        command: what measures all of it again, where that is not what was typed.
    """
    RESULTS.mkdir(exist_ok=True)
    result = {
        "command": command or " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "commit": commit(),
        "device": "cpu" if platform.is_cpu() else torch.cuda.get_device_name(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": machine.python_version(),
        "torch": torch.__version__,
        "measured": measured,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {os.path.relpath(path)}")
