"""The miniature: a model that is good at short texts teaches itself texts of four times the length, on this machine.

Usage: make quickstart, or python -m examples.miniature.run [--work DIR]

Every stage is a command a user would type, printed before it runs. Stages that are done are not done again, unless
their inputs, their command or the package's source have changed.
"""

import argparse
import sys
from pathlib import Path

from examples.miniature.methods import METHODS, build_options, generate_options, train_options
from examples.miniature.model import POLICY_THETA
from examples.miniature.report import NAMES, show
from examples.stages import ROOT, Stage, run_example

HERE = ROOT / "examples" / "miniature"
BASE = HERE / "base"
NUM_TEXTS = 1400
SHOWN = {
    "sft": {"lr": 4e-3},
    "dpo": {"lr": 1e-3, "longpo-beta": 0.1},
    "longpo": {"lr": 2e-3, "longpo-beta": 0.1, "longpo-pref-coef": 0.1},
}
"""Methods that are trained, all on the same pairs, and with what."""


def main() -> int:
    """Run what is not done yet and show the result; returns the exit status."""
    parser = argparse.ArgumentParser(description="A small model teaches itself texts of four times its length.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quickstart", help="folder for all it makes")
    work = parser.parse_args().work.resolve()
    return run_example(pipeline(work), work, show)


def pipeline(work: Path) -> list[Stage]:
    """The stages in order; ``work`` gets what they make."""
    python = (sys.executable, "-m")
    verb = (*python, "megatron_longpo.commands.main")
    texts, pairs, data, imported = work / "texts", work / "pairs.jsonl", work / "data" / "pairs", work / "imported"
    task = (HERE / "task.py", HERE / "model.py", HERE / "make_texts.py")
    stages = [
        Stage(
            name="texts", title=f"texts: {NUM_TEXTS:,} of four times the length, and questions on them", inputs=task,
            command=(*python, "examples.miniature.make_texts", "--output", f"{texts}", "--num-texts", f"{NUM_TEXTS}"),
            outputs=(texts,),
        ),
        Stage(
            name="generate", title="generate: the model answers from a chunk (chosen) and from the whole (rejected)",
            needs=("texts",), inputs=(BASE / "model.safetensors",),
            outputs=(pairs, pairs.with_name("pairs.jsonl.journal")),  # of other texts it would be refused
            command=(*verb, "generate", *generate_options(BASE, texts), "--output", f"{pairs}"),
        ),
        Stage(
            name="build", title="build: JSONL -> indexed dataset", needs=("generate",), outputs=(data.parent,),
            command=(*verb, "build", *build_options(pairs, BASE, data)),
        ),
        Stage(
            name="import", title="import-hf: Hugging Face -> Megatron", outputs=(imported,),
            inputs=(BASE / "model.safetensors",),
            command=(*verb, "import-hf", "--hf", f"{BASE}", "--output", f"{imported}"),
        ),
        *(
            Stage(
                name=f"score-{context}", title=f"score-reference: log-probs on the {context} contexts, for {method}",
                needs=("build", "import"), outputs=(data.parent / name,),
                command=(*verb, "score-reference", "--data", f"{data}", "--checkpoint", f"{imported}",
                         "--context", context),
            )
            for context, name, method in (
                ("short", "pairs.reference.npz", "LongPO"), ("long", "pairs.reference-long.npz", "DPO"),
            )
        ),
    ]  # fmt: skip
    for name, trial in SHOWN.items():
        run, exported, method = work / "runs" / name, work / "models" / name, METHODS[name]
        stages += [
            Stage(
                name=f"train-{name}", title=f"train: {NAMES[name]}", outputs=(run,),
                needs=("import", "build", *(f"score-{context}" for context in method.reads)),
                command=(*python, "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m",
                         "megatron_longpo.train", "--load", f"{imported}", "--longpo-data", f"{data}",
                         "--save", f"{run}", *train_options(method, trial)),
            ),
            Stage(
                name=f"export-{name}", title=f"export-hf: {NAMES[name]} -> Hugging Face", needs=(f"train-{name}",),
                command=(*verb, "export-hf", "--checkpoint", f"{run}", "--output", f"{exported}"), outputs=(exported,),
            ),
        ]  # fmt: skip
    models = [
        f"base={BASE}",
        f"raised={BASE}:{POLICY_THETA:g}",
        *(f"{name}={work / 'models' / name}" for name in SHOWN),
    ]
    exam = Stage(
        name="exam", title="exam: questions on new texts of 1, 2, 4 and 8 lengths, and the skills",
        needs=tuple(f"export-{name}" for name in SHOWN), inputs=(HERE / "evaluate.py", *task),
        command=(*python, "examples.miniature.evaluate", "--models", *models, "--output", f"{work / 'exam.json'}"),
        outputs=(work / "exam.json",),
    )  # fmt: skip
    return [*stages, exam]


if __name__ == "__main__":
    sys.exit(main())
