"""What the verbs that write a dataset share: its options, its writer and the report.

The heavy imports (transformers, torch, Megatron: seconds) come after the options were checked.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file, refuse_existing
from megatron_longpo.data.manifest import Manifest
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.data.indexed import PairWriter
    from megatron_longpo.data.parallel import RenderSettings

MOST_WORKERS = 16
"""The default's limit: beyond that, reading and writing in one process are the limit."""
BYTES_PER_WORKER = 8 << 20
"""The default's measure: with less to do, a worker takes longer to start than to work."""


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """``--tokenizer``, ``--chat-template``, ``--output``, ``--overwrite`` and ``--max-length``."""
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="Hugging Face folder with the tokenizer"
    )
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja template to render with (default: the folder's); import the model with the same one",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PREFIX", help="the dataset's files begin with this"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    parser.add_argument(
        "--max-length",
        type=int,
        required=True,
        metavar="TOKENS",
        help="limit on one conversation: trunk + longer branch; holds for the long and for each short one",
    )


def check_dataset_options(args: argparse.Namespace) -> None:
    """Refuse what needs no reading to be found wrong, in these options or ``--input``."""
    if not args.tokenizer.is_dir():
        raise UserError(f"--tokenizer {args.tokenizer}: no such folder; give a Hugging Face folder with a tokenizer")
    if args.output.is_dir() or not args.output.name:
        raise UserError(
            f"--output {args.output} is a folder; give the prefix of the files to write, like {args.output}/pairs"
        )
    if args.max_length < 1:
        raise UserError(f"--max-length {args.max_length}: needs at least 1")
    files = [dataset_file(args.output, suffix).resolve() for suffix in SUFFIXES]
    inputs = [path.resolve() for path in args.input]
    for index, path in enumerate(args.input):
        if inputs[index] in inputs[:index]:
            raise UserError(f"{path}: given twice; name every input once")
        if inputs[index] in files:
            raise UserError(f"--output {args.output}: its files would replace the --input {path}; choose another name")
    refuse_existing(args.output, args.overwrite)


def given_template(args: argparse.Namespace) -> str | None:
    """The Jinja source in ``--chat-template``."""
    from megatron_longpo.data.tokenizer import read_chat_template

    return read_chat_template(args.chat_template) if args.chat_template else None


def render_settings(args: argparse.Namespace) -> "RenderSettings":
    """What the options say of rendering."""
    from megatron_longpo.data.parallel import RenderSettings

    return RenderSettings(
        tokenizer=args.tokenizer, chat_template=given_template(args), max_length=args.max_length, overlong=args.overlong
    )


def usable_tokenizer(args: argparse.Namespace) -> "PreTrainedTokenizerFast":
    """The tokenizer that the options name, its chat template checked."""
    from megatron_longpo.data.chat import check_chat_template
    from megatron_longpo.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer, given_template(args))
    check_chat_template(tokenizer, args.chat_template)
    return tokenizer


def open_writer(args: argparse.Namespace, tokenizer: "PreTrainedTokenizerFast") -> "PairWriter":
    """The writer of the dataset that the options describe; enter it to begin."""
    from megatron_longpo.data.indexed import PairWriter
    from megatron_longpo.data.tokenizer import tokenizer_fingerprint, vocabulary_size

    return PairWriter(
        args.output,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocab_size=vocabulary_size(tokenizer),
        max_length=args.max_length,
        overlong=args.overlong,
        overwrite=args.overwrite,
    )


def default_workers(num_bytes: int) -> int:
    """How many processes tokenise that much input."""
    return max(1, min(num_bytes // BYTES_PER_WORKER, len(os.sched_getaffinity(0)), MOST_WORKERS))


def print_report(prefix: Path, manifest: Manifest, seconds: float) -> None:
    """Lengths, counts and speed, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"{prefix.name}: lengths in tokens", title_justify="left")
    for name in ("", "least", "median", "greatest", "in all"):
        table.add_column(name, justify="left" if not name else "right")
    for kind, (least, median, greatest) in manifest.lengths.items():
        total = f"{manifest.num_tokens[kind]:,}" if kind in manifest.num_tokens else ""
        name = "trunk + longer branch" if kind == "pair" else kind.replace("_", " ")
        table.add_row(name, f"{least:,}", f"{median:,.0f}", f"{greatest:,}", total)
    console.print(table)
    most = max(count for _, count in manifest.histogram)
    for bound, count in manifest.histogram:
        console.print(f"  {bound // 2 + 1:>9,} to {bound:>9,} tokens {count:>8,} pairs  {'#' * -(-30 * count // most)}")
    num_tokens = sum(manifest.num_tokens.values())
    bad = f" {manifest.num_bad:,} bad rows left out," if manifest.num_bad else ""
    console.print(
        f"{manifest.num_pairs:,} pairs, {manifest.num_turns:,} turns, {num_tokens:,} tokens;{bad}"
        f" {manifest.num_skipped:,} pairs skipped, {manifest.num_truncated:,} truncated"
        f" (by {manifest.num_removed:,} tokens); {seconds:.1f} s, {num_tokens / max(seconds, 1e-3):,.0f} tokens/s"
    )
