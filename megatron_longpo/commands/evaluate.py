"""``megatron-longpo evaluate STEP``: data, prompts, answers, tables; and scores of answers made elsewhere."""

import argparse
import importlib

STEPS = {
    "prepare": "bring the benchmarks' data into a folder, once, on a machine with network",
    "make-ruler": "RULER's prompts for a tokenizer, made once and kept",
    "run": "every model in every task; what is there is not made again",
    "report": "tables, differences and plots of a run",
    "score": "what a file of answers is worth, by a benchmark's own rules: score (0 to 100), num, standard_error",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all steps."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for name, about in STEPS.items():
        module = importlib.import_module(f"megatron_longpo.commands.evaluate_{name.replace('-', '_')}")
        step = steps.add_parser(name, allow_abbrev=False, help=about, description=about[0].upper() + about[1:] + ".")
        module.add_arguments(step)
        step.set_defaults(step=module.run)


def run(options: argparse.Namespace) -> None:
    """Run the step that was named."""
    options.step(options)
