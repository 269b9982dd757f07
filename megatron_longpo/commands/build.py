"""``megatron-longpo build``: JSONL preference pairs -> indexed binary dataset.

The output is written whole or not at all, and its bytes do not depend on the number of workers. The heavy imports
(transformers, torch, Megatron: seconds) come after the options were checked.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.commands.quiet import quiet_megatron
from megatron_longpo.data.dataset_files import refuse_existing
from megatron_longpo.data.manifest import InputFile, Manifest
from megatron_longpo.data.pair import UniqueIds, read_lines
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from megatron_longpo.commands.progress import InputProgress
    from megatron_longpo.data.indexed import PairWriter
    from megatron_longpo.data.parallel import RenderSettings

_MOST_WORKERS = 16
"""By default: beyond that, reading and writing in one process are the limit."""
_BYTES_PER_WORKER = 8 << 20
"""By default: with less to do, a worker takes longer to start than to work."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help="JSONL files of pairs")
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
    parser.add_argument(
        "--max-length",
        type=int,
        required=True,
        metavar="TOKENS",
        help="limit on one conversation: trunk + longer branch; holds for the long and for each short one",
    )
    parser.add_argument(
        "--overlong",
        choices=("refuse", "truncate", "skip"),
        default="refuse",
        help="a pair over the limit: stop; drop tokens from the middle of its context; leave it out (default: refuse)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that tokenise (default: one for every {_BYTES_PER_WORKER >> 20} MB of input, at most one per"
        f" core and {_MOST_WORKERS})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")


def run(args: argparse.Namespace) -> int:
    """Build the dataset and print what is in it."""
    _check_options(args)
    from megatron_longpo.commands.progress import InputProgress
    from megatron_longpo.data.parallel import RenderSettings
    from megatron_longpo.data.render import (
        check_chat_template,
        load_tokenizer,
        read_chat_template,
        tokenizer_fingerprint,
        vocabulary_size,
    )

    template = read_chat_template(args.chat_template) if args.chat_template else None
    tokenizer = load_tokenizer(args.tokenizer, template)
    check_chat_template(tokenizer, args.chat_template)
    with quiet_megatron():
        from megatron_longpo.data.indexed import PairWriter

    settings = RenderSettings(
        tokenizer=args.tokenizer, chat_template=template, max_length=args.max_length, overlong=args.overlong
    )
    num_bytes = sum(path.stat().st_size for path in args.input)
    with (
        PairWriter(
            args.output,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            vocab_size=vocabulary_size(tokenizer),
            max_length=args.max_length,
            overlong=args.overlong,
            overwrite=args.overwrite,
        ) as writer,
        InputProgress("build", num_bytes) as progress,
    ):
        inputs = _write_pairs(args, settings, writer, progress)
        manifest = writer.finish(inputs)
    _print_report(args.output, manifest, progress.seconds)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    for path in args.input:
        if not path.is_file():
            raise UserError(f"--input {path}: no such file; give a JSONL file of pairs")
    if not args.tokenizer.is_dir():
        raise UserError(f"--tokenizer {args.tokenizer}: no such folder; give a Hugging Face folder with a tokenizer")
    if args.output.is_dir() or not args.output.name:
        raise UserError(
            f"--output {args.output} is a folder; give the prefix of the files to write, like {args.output}/pairs"
        )
    if args.max_length < 1:
        raise UserError(f"--max-length {args.max_length}: needs at least 1")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: needs at least 1")
    refuse_existing(args.output, args.overwrite)


def _write_pairs(
    args: argparse.Namespace, settings: "RenderSettings", writer: "PairWriter", progress: "InputProgress"
) -> list[InputFile]:
    from megatron_longpo.data.parallel import render_lines

    num_workers = args.workers or _default_workers(sum(path.stat().st_size for path in args.input))
    inputs: list[InputFile] = []
    ids = UniqueIds()
    with closing(render_lines(_hashed_lines(args.input, inputs), settings, num_workers)) as lines:
        for line in lines:
            ids.add(line.id, line.where)
            if line.rendered is None:
                writer.skip()
                progress.advance(line.num_bytes, 0)
                continue
            writer.add(line.rendered, line.where, line.meta)
            conversations = (line.rendered.long, *line.rendered.short)
            progress.advance(line.num_bytes, sum(sum(item.lengths) for item in conversations))
    return inputs


def _default_workers(num_bytes: int) -> int:
    return max(1, min(num_bytes // _BYTES_PER_WORKER, len(os.sched_getaffinity(0)), _MOST_WORKERS))


def _hashed_lines(paths: list[Path], inputs: list[InputFile]) -> Iterator[tuple[str, bytes]]:
    """The lines of all files; appends to ``inputs`` what each file was as soon as its last line was taken."""
    for path in paths:
        digest = hashlib.sha256()
        num_bytes = 0
        for where, line in read_lines(path):
            digest.update(line)
            num_bytes += len(line)
            yield where, line
        inputs.append(InputFile(path=str(path), num_bytes=num_bytes, sha256=digest.hexdigest()))


def _print_report(prefix: Path, manifest: Manifest, seconds: float) -> None:
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
    console.print(
        f"{manifest.num_pairs:,} pairs, {manifest.num_turns:,} turns, {num_tokens:,} tokens;"
        f" {manifest.num_skipped:,} pairs skipped, {manifest.num_truncated:,} truncated"
        f" (by {manifest.num_removed:,} tokens); {seconds:.1f} s, {num_tokens / max(seconds, 1e-3):,.0f} tokens/s"
    )
