"""The measurements that need a GPU, the most important first.

    python -m benchmarks.gpu [--gpus 8] [--only NAME ...]

Exactness comes first (tests/gpu); what fails it is not timed. Each measurement runs in processes of its own and prints
its rows and a verdict against its goals (goals.py); benchmarks/results/gpu.json keeps all of it with the machine. One
GPU takes less than ten minutes; ``mistral-7b`` (128K steps of all its parameters on an H200) and ``peers`` run only
where they are named, ten minutes each. With ``--rehearse FILE`` the same code runs on a CPU on a few hundred tokens:
its numbers mean nothing, so they go to FILE.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.suites import RESULTS, SUITES, WHOLE, Measurement, read_results
from benchmarks.origin import ROOT, commit, gpu
from megatron_longpo.files import atomic_file
from megatron_longpo.throughput import peak_tflops

EXACT = {1: ("test_attention.py", "test_logprob.py", "test_step.py"), 8: ("test_context_parallel.py",)}
EXACT_SECONDS = 120


def main() -> int:
    """Run the suite; 1 if something failed or fell short."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, choices=SUITES, default=1)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements; exactness is left out then")
    parser.add_argument("--rehearse", type=Path, metavar="FILE", help="run on a CPU, and write there")
    args = parser.parse_args()
    names = [one.name for one in SUITES[args.gpus]]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"--only {' '.join(sorted(unknown))}: unknown; choose of {', '.join(names)}")
    if not args.rehearse and torch.cuda.device_count() < args.gpus:
        parser.error(f"{torch.cuda.device_count()} CUDA GPUs, needs {args.gpus}: nothing was run")
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not args.only and not is_exact(args.gpus, bool(args.rehearse)):
        print("tests/gpu do not pass: nothing was timed")
        return 1
    peak = None if args.rehearse else peak_tflops(torch.cuda.get_device_name())
    if peak is None and not args.rehearse:
        parser.error(
            f"the peak of {torch.cuda.get_device_name()} is not known: add it to megatron_longpo/throughput.py"
        )
    machine = {"gpu": "none"} if args.rehearse else gpu()
    is_well = True
    for one in SUITES[args.gpus]:
        if one.name in args.only if args.only else one.by_default:
            found = run(one, args.gpus, peak)
            write(args.rehearse or RESULTS, found, machine)
            is_whole = found["outcome"] == WHOLE
            is_well &= is_whole and (bool(args.rehearse) or all(goal["reached"] for goal in found["verdicts"]))
    return 0 if is_well else 1


def is_exact(gpus: int, rehearse: bool) -> bool:
    """The tests of tests/gpu on which the measurements stand."""
    files = [str(ROOT / "tests" / "gpu" / name) for name in EXACT[gpus]]
    environment = os.environ | {"GPU_TESTS_SECONDS": str(EXACT_SECONDS)}
    with tempfile.TemporaryDirectory() as name:
        if rehearse:
            environment["GPU_TESTS_REHEARSAL"] = f"{name}/tests.json"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "minversion=8", "-k", "not transformer_engine", *files]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def run(one: Measurement, gpus: int, peak: float | None) -> dict[str, Any]:
    """Measure, print and judge. ``peak``: the GPU's, TFLOP/s; None in a rehearsal."""
    print(f"{one.name}:", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows"
        path.touch()
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.one", one.measure, str(gpus), str(path)]
        outcome = outcome_of(command, one.seconds)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        print(f"  {json.dumps(row)}")
    verdicts = [goal.verdict(rows, 1e12 * (peak or 1.0)) for goal in GOALS[one.name]] if outcome == WHOLE else []
    for goal, verdict in zip(GOALS[one.name], verdicts, strict=False):  # no verdicts of what did not end
        said = "a rehearsal" if peak is None else "reached" if verdict["reached"] else "NOT REACHED"
        print(f"  {verdict['what']}: {verdict['number']:.3f} ({goal.bound}): {said}")
    if outcome != WHOLE:
        print(f"  {outcome}")
    seconds = time.monotonic() - began
    return {"name": one.name, "gpus": gpus, "outcome": outcome, "seconds": seconds, "rows": rows, "verdicts": verdicts}


def outcome_of(command: list[str], seconds: int) -> str:
    """Run a program and all that it starts, for so long at the most; what became of it."""
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"broken off after {seconds} seconds"
    finally:  # after Ctrl-C too, which a session of its own does not hear
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = said.decode(errors="replace").strip().splitlines()
    return f"failed: {lines[-1] if lines else process.returncode}" if process.returncode else WHOLE


def write(path: Path, found: dict[str, Any], machine: dict[str, Any]) -> None:
    """Put a measurement in the place of the earlier one of its name and GPU."""
    kept = [
        one for one in read_results(path) if (one["name"], one["machine"]["gpu"]) != (found["name"], machine["gpu"])
    ]
    with atomic_file(path) as partial:
        new = {"commit": commit(), "machine": machine, **found}
        partial.write_text(json.dumps([*kept, new], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
