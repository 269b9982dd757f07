"""A long training run of a tiny model: does it go on holding the same memory and files, and taking the same time?

    python -m benchmarks.soak [--steps N]

Every hundred steps the process is looked at: resident memory, open files, and processor time, which other programs on
the machine lengthen less than the clock's. The run evaluates every 250 steps and saves every 500, keeping the last one.
Drift is the slope of a straight line through the points from step 500 on, times their span, over their mean.
"""

import argparse
import os
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_result
from benchmarks.faults import last_step
from tests.ranks import kill, program
from tests.workspace import make_workspace, train_argv, train_main

EVERY, WARM = 100, 500
OPTIONS = ("--save-interval", "500", "--save-retain-interval", "100000", "--eval-interval", "250", "--split", "75,25")


def main() -> None:
    """Run, look, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        points = soak(Path(name), args.steps)
    warm = [point for point in points if point["step"] >= WARM]
    seconds = [
        {"step": after["step"], "seconds": (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])}
        for before, after in pairwise(warm)
    ]
    drifts = {
        "resident_bytes": drift(warm, "resident_bytes"),
        "open_files": drift(warm, "open_files"),
        "processor_seconds_of_a_step": drift(seconds, "seconds"),
    }
    for what, value in drifts.items():
        print(f"{what}: drift {value:+.2%}")
    write_result("soak", {"steps": args.steps, "drift": drifts, "points": points})


def soak(folder: Path, steps: int) -> list[dict[str, Any]]:
    """What the process looks like every hundred steps."""
    work = make_workspace(folder / "work")
    save = folder / "run"
    argv = train_argv(work, "--train-iters", str(steps), *OPTIONS, "--save", save)
    (rank,) = program(train_main, argv, 1, folder)
    points: list[dict[str, Any]] = []
    rank.start()
    try:
        while rank.exitcode is None:
            step = last_step(save / "metrics.jsonl")
            if step >= EVERY * (len(points) + 1):
                with suppress(FileNotFoundError):  # it has just ended
                    points.append({"step": step, **looked_at(rank.pid or 0)})
                    print(points[-1], flush=True)
            time.sleep(0.2)
    finally:
        kill([rank])
    if rank.exitcode:
        raise SystemExit((folder / "log0").read_text())
    return points


def looked_at(pid: int) -> dict[str, float]:
    """Of a process: resident bytes, open files, and seconds of processor time so far, its threads' included.

    Raises:
        FileNotFoundError: it has ended.
    """
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    pages = int((process / "statm").read_text().split()[1])
    if not pages:
        raise FileNotFoundError(f"process {pid} has just ended")
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(list((process / "fd").iterdir())),
        "seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    }


def drift(points: list[dict[str, Any]], name: str) -> float:
    """Relative."""
    steps, values = (np.array([point[key] for point in points], float) for key in ("step", name))
    return float(np.polyfit(steps, values, 1)[0] * (steps[-1] - steps[0]) / values.mean())


if __name__ == "__main__":
    main()
