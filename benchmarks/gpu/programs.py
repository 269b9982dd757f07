"""Measurements of whole programs: training of all of Mistral-7B on one GPU, and the peers on the same GPU."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, platform
from benchmarks.door import MISTRAL_7B, write_model
from benchmarks.gpu.scale import LONGEST, TYPICAL, scale
from benchmarks.random_runs import run_python, write_pairs
from megatron_longpo.metrics_file import read_metrics

SMALL = {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2}
SMALL |= {"head_dim": 16, "vocab_size": 1024}
ON_A_GPU = ("--bf16", "--optimizer-cpu-offload", "--grad-reduce-in-bf16")


def mistral_7b() -> Iterator[dict[str, Any]]:
    """Three steps of all parameters at the longest trunk, with the optimizer in the machine's own memory."""
    size = scale()
    trunk, branch = size.trunks[LONGEST], size.branches[TYPICAL]
    shape, layers = (MISTRAL_7B | SMALL, 2) if platform.is_cpu() else (MISTRAL_7B, MISTRAL_7B["num_hidden_layers"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imported, data, metrics = (folder / part for part in ("imported", "data", "metrics.jsonl"))
        write_model(folder / "hf", layers, shape)
        verbs = "megatron_longpo.commands.main"
        run_python(verbs, "import-hf", "--hf", folder / "hf", "--output", imported, "--no-verify", threads=8)
        write_pairs(data, imported, trunk, branch, shape["vocab_size"], number=4)
        run_python(verbs, "score-reference", "--checkpoint", imported, "--data", data, threads=8)
        said = run_python(
            "torch.distributed.run", "--standalone", "--nproc-per-node", 1, "-m", "megatron_longpo.train",
            "--load", imported, "--longpo-data", data, "--longpo-metrics", metrics, "--train-iters", 3, "--lr", 5e-7,
            "--global-batch-size", 1, "--longpo-recompute", "keep-attention", "--longpo-optimizer", "rmsprop",
            "--seq-length", trunk + branch, *(() if platform.is_cpu() else ON_A_GPU), threads=8,
        )  # fmt: skip
        for line in read_metrics(metrics, "train"):
            wanted = ("step", "seconds", "phase_seconds", "loss", "peak_memory_gib", "mfu", "pair_equivalent_mfu")
            yield {"trunk": trunk, "branch": branch, **{key: line[key] for key in wanted if key in line}}
    memory = next(line for line in said.splitlines() if "memory of a rank" in line)
    yield {"memory": memory.strip()}


def peers() -> Iterator[dict[str, Any]]:
    """The released form beside ours; TRL too by `python -m benchmarks.against_peers --device cuda --trl PYTHON`."""
    words = ["--device", "cuda", "--size", "7B-wide", "--trunk", "32768", "--steps", "2"]
    subprocess.run([sys.executable, "-m", "benchmarks.against_peers", *words], check=True)
    for row in json.loads((RESULTS / "against_peers_cuda.json").read_text())["measured"]:
        yield {key: row[key] for key in ("peer", "size", "trunk", "branch", "recompute", "times", "memory")}
