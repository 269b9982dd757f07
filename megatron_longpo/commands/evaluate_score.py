"""``megatron-longpo evaluate score``: what a file of answers is worth, by a benchmark's own rules."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from megatron_longpo.evaluate.answers import read_answers, score_answers
from megatron_longpo.evaluate.rules import RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("--task", choices=RULES, required=True, metavar="TASK", help=", ".join(RULES))
    parser.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines: {"answer": TEXT, "references": [TEXT, ...]}, with "options": [A, B, C, D] of a choice',
    )


def run(options: argparse.Namespace) -> None:
    """Score the file and print one JSON object."""
    result = score_answers(RULES[options.task], read_answers(options.answers), options.answers)
    print(json.dumps({"task": options.task, **asdict(result)}))
