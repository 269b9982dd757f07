"""What the training program adds to a small model's steps: seconds to the first one, and overhead of each.

python -m benchmarks.small_model

On the miniature (0.4M parameters), one rank, one thread. The peer is a plain PyTorch step on the Hugging Face model:
chosen and rejected as two sequences, log-probs, backward, clipping, AdamW. From steps of 1 and of 8 pairs follow the
seconds that a step has whatever it holds, and those of a pair.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_result
from examples.miniature.evaluate import load
from examples.miniature.methods import METHODS, build_options, generate_options, train_options
from examples.miniature.model import POLICY_THETA
from examples.miniature.run import BASE, SHOWN
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.metrics_file import read_metrics

STEPS, WARM_UP, BATCHES = 60, 10, (1, 8)


def main() -> None:
    """Make a dataset, measure both sides and write the raw numbers."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work)
        ours = {str(batch): train(work, batch) for batch in BATCHES}
        peer = {str(batch): plain_steps(work, batch) for batch in BATCHES}
    sides = {"ours": {batch: found["step_seconds"] for batch, found in ours.items()}, "plain_pytorch": peer}
    fixed = {side: fixed_seconds(of_side) for side, of_side in sides.items()}
    starts = [found["seconds_to_first_step"] for found in ours.values()]
    write_result("small_model", {"seconds_to_first_step": starts, "step_seconds": sides, "fixed_step_seconds": fixed})


def prepare(work: Path) -> None:
    """Pairs, dataset, checkpoint and scores."""
    verb = ("megatron_longpo.commands.main",)
    run("examples.miniature.make_texts", "--output", str(work / "texts"), "--num-texts", "128")
    run(*verb, "generate", *generate_options(BASE, work / "texts"), "--output", str(work / "pairs.jsonl"))
    run(*verb, "build", *build_options(work / "pairs.jsonl", BASE, work / "data"))
    run(*verb, "import-hf", "--hf", str(BASE), "--output", str(work / "imported"))
    run(*verb, "score-reference", "--data", str(work / "data"), "--checkpoint", str(work / "imported"))


def run(module: str, *words: str) -> None:
    """Run a program of the project."""
    subprocess.run([sys.executable, "-m", module, *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(work: Path, batch: int) -> dict[str, float]:
    """Seconds from the command to the line of the first step, and the median of a step's."""
    save = work / f"run-{batch}"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    words += ["-m", "megatron_longpo.train", "--load", str(work / "imported"), "--longpo-data", str(work / "data")]
    words += ["--save", str(save), *train_options(METHODS["longpo"], SHOWN["longpo"])]
    words += ["--global-batch-size", str(batch), "--train-iters", str(STEPS)]
    started, first = time.monotonic(), 0.0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1/"):
                first = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"training ended with status {process.returncode}")
    lines = read_metrics(save / "metrics.jsonl", "train")
    return {
        "seconds_to_first_step": first,
        "step_seconds": statistics.median(line["seconds"] for line in lines[WARM_UP:]),
    }


def plain_steps(work: Path, batch: int) -> float:
    """Median seconds of a plain PyTorch step on that many of the pairs."""
    reader = PairReader(work / "data")
    model = load(BASE, POLICY_THETA).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows: list[list[int]] = []
    for index in range(batch):
        long = reader[index].long
        rows += [[*map(int, long.trunk), *map(int, branch.tokens)] for branch in (long.chosen, long.rejected)]
    size = max(map(len, rows))
    ids_BS = torch.tensor([row + [0] * (size - len(row)) for row in rows])
    seconds: list[float] = []
    for _ in range(STEPS):
        started = time.perf_counter()
        plain_step(model, optimizer, ids_BS)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def plain_step(model: Any, optimizer: torch.optim.Optimizer, ids_BS: torch.Tensor) -> None:
    """LongPO's terms on two full sequences a pair; padding is not masked, which costs nothing."""
    logits_BSV = model(input_ids=ids_BS, use_cache=False).logits[:, :-1]
    logp_BS = logits_BSV.log_softmax(-1).gather(2, ids_BS[:, 1:, None])[..., 0]
    margin_P = logp_BS[0::2].sum(1) - logp_BS[1::2].sum(1)
    loss = -logp_BS[0::2].mean() - 0.1 * torch.nn.functional.logsigmoid(0.1 * margin_P).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()


def fixed_seconds(by_batch: dict[str, float]) -> float:
    """What a step takes whatever it holds, by the line through both batches."""
    one, eight = (by_batch[str(batch)] for batch in BATCHES)
    return one - (eight - one) / (BATCHES[1] - BATCHES[0])


if __name__ == "__main__":
    main()
