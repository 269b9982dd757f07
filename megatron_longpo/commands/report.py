"""``megatron-longpo report RUN...``: curves of training runs as one HTML page."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder that training saved into (its --save), or a file of metrics (its --longpo-metrics)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="HTML file to write")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with the report.json of evaluate report; may be given more than once (default: the runs' folders "
        "that have one)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from megatron_longpo.report.page import write_page  # torch is slow to import

    write_page(options.runs, options.output, options.evaluation)
    print(f"wrote {options.output}")
