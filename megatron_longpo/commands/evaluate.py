"""``megatron-longpo evaluate score``: what a file of answers is worth, by a benchmark's own rules."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from megatron_longpo.evaluate.answers import read_answers, score_answers
from megatron_longpo.evaluate.rules import RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    score = steps.add_parser(
        "score",
        allow_abbrev=False,
        help="what a file of answers is worth",
        description="Score answers by the benchmark's own rules and print one JSON object: score (0 to 100), num, "
        "standard_error.",
    )
    score.add_argument("--task", choices=RULES, required=True, metavar="TASK", help=", ".join(RULES))
    score.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines: {"answer": TEXT, "references": [TEXT, ...]}, with "options": [A, B, C, D] of a choice',
    )
    score.set_defaults(step=run_score)


def run(options: argparse.Namespace) -> None:
    """Run the step that was named."""
    options.step(options)


def run_score(options: argparse.Namespace) -> None:
    """Score the file and print the result."""
    result = score_answers(RULES[options.task], read_answers(options.answers), options.answers)
    print(json.dumps({"task": options.task, **asdict(result)}))
