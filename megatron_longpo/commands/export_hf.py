"""``megatron-longpo export-hf``: Megatron distributed checkpoint -> Hugging Face folder."""

import argparse
import time
from pathlib import Path

from megatron_longpo.commands.import_hf import DTYPE_CHOICES, add_verify_options, check_verify_options, verify
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.report.card_section import card_section


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="folder that import-hf or training's --save wrote"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write; must not exist or be empty"
    )
    parser.add_argument("--iteration", type=int, metavar="N", help="which iteration to take (default: the latest)")
    parser.add_argument(
        "--dtype", choices=DTYPE_CHOICES, default="as-is", help="dtype to write the weights in (default: as they are)"
    )
    add_verify_options(parser)
    parser.add_argument(
        "--base-model",
        metavar="ORG/NAME",
        help="name on the Hub of the model that was imported, for the card (default: what its own files say)",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="DIR",
        help="folder with the report.json of evaluate report: the card shows its tables of this model and of the first",
    )
    parser.add_argument(
        "--evaluation-model", metavar="NAME", help="this model's name in the report (default: the report's last)"
    )


def run(args: argparse.Namespace) -> None:
    """Export and say what came out."""
    evaluation = check(args)
    from megatron_longpo.hf.export_hf import export_hf  # torch is slow to import; --help need not wait for it

    def compare(folder: Path) -> None:
        verify(args, folder, args.checkpoint, args.iteration)

    started = time.monotonic()
    num_bytes = export_hf(
        args.checkpoint, args.output, args.iteration, args.dtype, args.base_model, compare, evaluation
    )
    print(f"exported {num_bytes / 1e9:.2f} GB of weights -> {args.output} in {time.monotonic() - started:.1f} s")


def check(args: argparse.Namespace) -> str:
    """Refuse what would otherwise show after the work is done.

    Returns:
        The card's section on the evaluation; empty if none was asked for.
    """
    check_verify_options(args)
    if args.evaluation is not None:
        return card_section(args.evaluation, args.evaluation_model)
    if args.evaluation_model is not None:
        raise UserError(f"--evaluation-model {args.evaluation_model}: of which report? Give --evaluation DIR too")
    return ""
