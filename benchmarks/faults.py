"""Training runs that are killed again and again: what is lost, and whether they end as runs in one piece.

    python -m benchmarks.faults [--only LAYOUT] [--kills N] [--seed N] [--output FILE] [--also FILE]

A run of 30 steps with checkpoints and evaluations is started by its own command until it is whole, and killed at random
moments of the kinds in KINDS; then the next run, until there were N kills. After each kill the newest whole checkpoint
is at least the one before; at the end of each run every number of its metrics file is that of the run in one piece.
SIGINT ends it after the run that it is in.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import write_result
from megatron_longpo.hf.folder import has_steps, newest_whole
from tests.ranks import kill, program
from tests.workspace import Workspace, make_workspace, read_metrics, train, train_argv, train_main

STEPS, SAVES, EVALUATES = 30, 3, 5
OPTIONS = ("--train-iters", STEPS, "--save-interval", SAVES, "--eval-interval", EVALUATES, "--split", "75,25")
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one rank": (1, ()),
    "two ranks": (2, ("--pipeline-model-parallel-size", "2")),
    "two ranks, saves in the background": (2, ("--use-distributed-optimizer", "--async-save")),
}
"""Ranks and options. An epoch of nine pairs does not divide by the batch of four."""
KINDS = {
    "kill": "SIGKILL to all ranks after a random step",
    "term": "SIGTERM to all ranks after a random step, with --exit-signal-handler",
    "rank": "SIGKILL to one rank after a random step; the others find out",
    "saving": "SIGKILL to all ranks while a checkpoint is written",
    "evaluating": "SIGKILL to all ranks while held-out pairs are evaluated",
    "resuming": "SIGKILL to all ranks before the first step",
}
PATIENCE = 60.0
"""Seconds within which ranks must end after a signal to them, or to one of them."""


@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill cost."""

    kind: str
    reached: int
    """The last step that was reported."""
    kept: int
    """The step that the next start goes on from."""
    seconds: float | None
    """From the next start of the program to the first step that had not been done before; None: it was killed first."""


class Run:
    """A run that is started, killed and started again."""

    def __init__(self, work: Workspace, folder: Path, layout: str, draw: random.Random) -> None:
        self._draw, self._folder = draw, folder
        self.num_ranks, options = LAYOUTS[layout]
        handler = ("--exit-signal-handler",)
        self._argv = train_argv(work, *map(str, OPTIONS), *options, *handler, "--save", folder)
        self.metrics = folder / "metrics.jsonl"

    def start(self, kind: str | None, reached: int) -> tuple[bool, float | None]:
        """Start once, to be killed in that way or not at all.

        Args:
            reached: the last step that was reported before.

        Returns:
            (it was killed, seconds to the first step after ``reached`` or None).
        """
        with tempfile.TemporaryDirectory() as logs:
            ranks = program(train_main, self._argv, self.num_ranks, Path(logs))
            begun, arrived = time.monotonic(), None
            moment = _Moment(kind, self._folder, self.metrics, self._draw) if kind else None
            for rank in ranks:
                rank.start()
            try:
                while any(rank.exitcode is None for rank in ranks):
                    if arrived is None and last_step(self.metrics) > reached:
                        arrived = time.monotonic() - begun
                    if moment and moment.has_come():
                        self._kill(ranks, moment.kind)
                        return True, arrived
                    time.sleep(0.002)
            finally:
                kill(ranks)
            if any(rank.exitcode for rank in ranks):
                raise SystemExit((Path(logs) / "log0").read_text())
            return False, arrived

    def _kill(self, ranks: Sequence[BaseProcess], kind: str) -> None:
        hit = [self._draw.choice(ranks)] if kind == "rank" else ranks
        for rank in hit:
            os.kill(rank.pid or 0, signal.SIGTERM if kind == "term" else signal.SIGKILL)
        if kind in ("rank", "term"):
            for rank in ranks:
                rank.join(PATIENCE)
                assert rank.exitcode is not None, f"a rank goes on after {kind}"


class _Moment:
    """When a kill of some kind is to come."""

    def __init__(self, kind: str, folder: Path, metrics: Path, draw: random.Random) -> None:
        self.kind, self._folder, self._metrics = kind, folder, metrics
        self._goes_on_from, self._goes_on = newest(folder), False
        self._step = draw.randint(min(self._goes_on_from + 1, STEPS), STEPS)
        self._delay = draw.uniform(0.0, 4.0 if kind == "resuming" else 0.2)
        self._since: float | None = time.monotonic() if kind == "resuming" else None

    def has_come(self) -> bool:
        if self._since is None and self._is_here():
            self._since = time.monotonic()
        return self._since is not None and time.monotonic() - self._since >= self._delay

    def _is_here(self) -> bool:
        last = last_step(self._metrics)
        self._goes_on |= last == self._goes_on_from  # later lines were cut off
        if not self._goes_on:
            return False
        if self.kind == "saving":
            step = -(-self._step // SAVES) * SAVES
            return last == step and (self._folder / f"iter_{step:07d}").is_dir()
        if self.kind == "evaluating":
            step = -(-self._step // EVALUATES) * EVALUATES
            return last == step
        return last == self._step


def last_step(metrics: Path) -> int:
    """The last training step in a metrics file that may be written just now."""
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text().splitlines() if '"split": "train"' in line and line.endswith("}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def newest(folder: Path) -> int:
    """The step that the next start goes on from."""
    return (newest_whole(folder)[0] or 0) if has_steps(folder) else 0


def campaign(work: Workspace, layout: str, num_kills: int, seed: int) -> dict[str, Any]:
    """Kill runs of a layout until there were that many kills."""
    draw = random.Random(f"{layout} {seed}")
    num_ranks, options = LAYOUTS[layout]
    straight = work.folder / "straight"
    finished = train(work, *map(str, OPTIONS), *options, "--save", straight, num_ranks=num_ranks)
    assert finished.status == 0, finished.output
    kinds = [kind for kind in KINDS if num_ranks > 1 or kind != "rank"]
    kills: list[Kill] = []
    num_runs = 0
    is_over: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: is_over.append(1))
    while len(kills) < num_kills and not is_over:
        folder = work.folder / "killed"
        kills += _one_run(Run(work, folder, layout, draw), folder, kinds, draw)
        for split in ("train", "valid"):
            whole = read_metrics(straight / "metrics.jsonl", split)
            assert read_metrics(folder / "metrics.jsonl", split) == whole, f"run {num_runs}: another course"
        num_runs += 1
        print(f"{layout}: {len(kills)} kills, {num_runs} runs whole and equal", flush=True)
        shutil.rmtree(folder)
    return {"layout": layout, "runs": num_runs, "equal": num_runs, "kills": [asdict(one) for one in kills]}


def _one_run(run: Run, folder: Path, kinds: Sequence[str], draw: random.Random) -> list[Kill]:
    """Start until the run is whole, at most ten times to be killed."""
    kills: list[Kill] = []
    kind: str | None = None
    reached = kept = 0
    while True:
        before, killed_by = kept, kind
        kind = draw.choice(kinds) if len(kills) < 10 else None
        killed, seconds = run.start(kind, reached)
        if killed_by:
            kills.append(Kill(killed_by, reached, before, seconds))
        if not killed:
            return kills
        reached, kept = max(reached, last_step(run.metrics)), newest(folder)
        assert kept >= before, f"step {before} was there, {kept} is what the next start goes on from"


def main() -> None:
    """Kill, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LAYOUTS, metavar="LAYOUT", help=f"of {', '.join(LAYOUTS)}")
    parser.add_argument("--kills", type=int, default=150, help="of each layout (default: 150)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/faults.json")
    parser.add_argument("--also", type=Path, metavar="FILE", help="an --output with other layouts")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.also.read_text())["rows"] if args.also else []
    for layout in [args.only] if args.only else LAYOUTS:
        with tempfile.TemporaryDirectory() as name:
            work = make_workspace(Path(name))
            rows.append(campaign(work, layout, args.kills, args.seed))
        for kind in KINDS:
            ones = [one for one in rows[-1]["kills"] if one["kind"] == kind]
            if ones:
                redone = mean(one["reached"] - one["kept"] for one in ones)
                print(f"{layout}, {kind}: {len(ones)} kills, {redone:.1f} steps done again")
    measured = {"kinds": KINDS, "steps": STEPS, "saves": SAVES, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(measured, indent=1) + "\n")
    else:
        write_result("faults", measured)


if __name__ == "__main__":
    main()
