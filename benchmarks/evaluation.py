"""SmolLM2-135M-Instruct before and after its example's training, by ``megatron-longpo evaluate``, on one machine.

python -m benchmarks.evaluation --work DIR

The data are what Python packages have (examples/evaluation_mirror.py). Beside the three tables: a task that the model
can do is asked of the same model behind a server, and of the model with its first layer's weights zeroed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import write_result
from examples.smollm2.fetch_model import default_folder
from megatron_longpo.evaluate.cells import Cell, read_cell_files
from tests.ranks import free_port
from tests.transformers_server import served

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluation-example.md"
LENGTHS, NUM_SAMPLES = "1024,2048", 20
SHORT_LIMITS = {"arc_challenge,hellaswag,winogrande": 100, "mmlu": 2}
"""Tasks -> documents (of MMLU: of each of 57 subjects)."""
EASY, CHECK_LENGTH = "ruler_niah_single_1", "1024"


def main() -> None:
    """Do what is not done; write the raw numbers and the report as a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps all that is made")
    parser.add_argument("--batch-size", default="4", metavar="N", help="prompts in one pass (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), metavar="N", help="that share the cells (default: a core each)"
    )
    options = parser.parse_args()
    work: Path = options.work.resolve()
    mirror, cells, checks = work / "mirror", work / "cells", work / "checks"
    _python("examples.evaluation_mirror", "--mirror", mirror)
    _python("examples.smollm2.run", "--work", work / "smollm2")
    base, trained = default_folder(), work / "smollm2" / "exported"
    ruler = ("--lengths", LENGTHS, "--mirror", mirror)
    _evaluate("make-ruler", "--tokenizer", base, *ruler, "--samples", NUM_SAMPLES)
    run = ("run", "--models", f"base={base}", f"longpo={trained}", *ruler, "--output", cells)
    run = (*run, "--batch-size", options.batch_size)
    _evaluate(*run, "--suite", "ruler", processes=options.processes)
    for tasks, limit in SHORT_LIMITS.items():
        _evaluate(*run, "--suite", "short", "--tasks", tasks, "--limit", limit, processes=options.processes)
    _evaluate("report", cells, "--published", "none")
    shutil.copyfile(cells / "report.md", PAGE)
    _check(base, _broken(base, work / "broken"), mirror, checks)
    measured = {
        "cells": [_numbers(cell) for cell in read_cell_files(cells).values()],
        "checks": [_numbers(cell) for cell in read_cell_files(checks).values()],
        "alike_answers_of_a_server": _alike(checks),
    }
    write_result("evaluation", measured)


def _check(base: Path, broken: Path, mirror: Path, output: Path) -> None:
    run = ("run", "--suite", "ruler", "--tasks", EASY, "--lengths", CHECK_LENGTH, "--mirror", mirror)
    run = (*run, "--output", output, "--models", f"base={base}", f"broken={broken}")
    _evaluate(*run)
    with served(base, free_port(), output.with_suffix(".serve.log")) as endpoint:
        _evaluate(*run, "--only", "base", "--engine", "openai", "--endpoint", endpoint,
                  "--served-model", base, "--max-concurrent", 2)  # fmt: skip


def _broken(base: Path, folder: Path) -> Path:
    """The model with the weights of its first layer zeroed."""
    if not folder.exists():
        shutil.copytree(base, folder)
        for file in folder.glob("*.safetensors"):
            weights = load_file(file)
            for name in weights:
                if name.startswith("model.layers.0."):
                    weights[name] = torch.zeros_like(weights[name])
            save_file(weights, file, metadata={"format": "pt"})
    return folder


def _alike(checks: Path) -> int:
    """How many answers the server and the model in this process have in common."""
    hf, server = ({one.id: one.answer for one in _cell(checks, engine).samples} for engine in ("hf", "openai"))
    return sum(server[name] == answer for name, answer in hf.items())


def _cell(checks: Path, engine: str) -> Cell:
    return next(cell for cell in read_cell_files(checks).values() if (cell.model, cell.engine) == ("base", engine))


def _numbers(cell: Cell) -> dict[str, Any]:
    names = ("model", "engine", "suite", "task", "length", "limit", "score", "standard_error", "num", "num_truncated")
    return {name: getattr(cell, name) for name in (*names, "real_length", "seconds", "prompt_tokens", "new_tokens")}


def _evaluate(*words: object, processes: int = 1) -> None:
    _python("megatron_longpo.commands.main", "evaluate", *words, processes=processes)


def _python(module: str, *words: object, processes: int = 1) -> None:
    command = (sys.executable, "-m", module, *map(str, words))
    print(shlex.join(command), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else None
    running = [subprocess.Popen(command, env=environment) for _ in range(processes)]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise SystemExit(f"failed: {shlex.join(command)}")


if __name__ == "__main__":
    main()
