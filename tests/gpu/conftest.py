"""What the tests of a GPU share: the device, a rank, measured numbers with their limits, and a file of all results.

They are written after every test, so a run that dies or is killed loses nothing but the test it was in. Environment:

    GPU_TESTS_SECONDS     no test starts later than this after the first; what is left out is listed
    GPU_TESTS_REHEARSAL   a file: without a GPU, run on the CPU what a CPU can, and write the results there
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.gpu.results import RESULTS, Run, merged, new_run, read_runs, write_runs
from benchmarks.origin import gpu
from megatron_longpo import platform
from megatron_longpo.model.kernels import use_only
from tests.gpu.measured import Measured

REHEARSAL = os.environ.get("GPU_TESTS_REHEARSAL")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu" if REHEARSAL else None
FILE = Path(REHEARSAL) if REHEARSAL else RESULTS
BUDGET = float(os.environ.get("GPU_TESTS_SECONDS", "inf"))
TIME_IS_UP = f"the {BUDGET:g} seconds are up"
if DEVICE:
    platform.activate()  # as every program does, before Megatron is imported

_runs: list[Run] = []
"""Earlier ones and, last, this one."""
_started = time.monotonic()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", 0) if DEVICE == "cuda" else torch.device("cpu")


@pytest.fixture(scope="session")
def dtype(device: torch.device) -> torch.dtype:
    """What models are trained in; a CPU multiplies bf16 about a hundred times slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture(scope="session")
def one_rank(device: torch.device) -> Iterator[dist.ProcessGroup]:
    """Megatron's groups of one rank; the group itself."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    yield parallel_state.get_tensor_model_parallel_group()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def any_kernel() -> Iterator[None]:
    yield
    use_only("auto")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    return Measured(request.node.user_properties)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if DEVICE is None:
        pytest.skip("needs a CUDA GPU")
    if time.monotonic() - _started > BUDGET:
        pytest.skip(TIME_IS_UP)


def pytest_runtest_logstart(nodeid: str) -> None:
    if DEVICE is None:
        return
    if not _runs:
        _runs.extend([*read_runs(FILE), new_run(gpu() if DEVICE == "cuda" else {"gpu": "none"})])
    _runs[-1]["tests"][nodeid] = {"outcome": "broken off", "seconds": 0.0}
    _write()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if DEVICE is None:
        return
    test = _runs[-1]["tests"][report.nodeid]
    test["seconds"] = round(test["seconds"] + report.duration, 3)
    if report.failed:
        crash: Any = getattr(report.longrepr, "reprcrash", None)
        test |= {"outcome": "failed", "reason": (crash.message if crash else str(report.longrepr)).split("\n")[0]}
    elif report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        test |= {"outcome": "left out" if reason == TIME_IS_UP else "skipped", "reason": reason}
    elif report.when == "call":
        test["outcome"] = "passed"
    test["measured"] = [value for name, value in report.user_properties if name == "measured"]
    if report.when == "teardown":
        _write()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if DEVICE is None:
        terminalreporter.write_line("no CUDA GPU: none of tests/gpu was run, and no result was written")
        return
    left_out = [name for name, test in _runs[-1]["tests"].items() if test["outcome"] == "left out"] if _runs else []
    for name in left_out:
        terminalreporter.write_line(f"left out, {TIME_IS_UP}: {name}")
    terminalreporter.write_line(f"the results are in {FILE}; python -m benchmarks.report shows them in the pages")


def _write() -> None:
    write_runs(merged(_runs[:-1], _runs[-1]), FILE)
