"""``megatron-longpo build``: JSONL preference pairs -> indexed binary dataset.

The output is written whole or not at all, and its bytes do not depend on the number of workers. The heavy imports
(transformers, torch, Megatron: seconds) come after the options were checked.
"""

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.commands.dataset_output import (
    BYTES_PER_WORKER,
    MOST_WORKERS,
    add_dataset_options,
    check_dataset_options,
    default_workers,
    open_writer,
    print_report,
    render_settings,
    usable_tokenizer,
)
from megatron_longpo.data.manifest import InputFile
from megatron_longpo.data.pair import UniqueIds, read_lines
from megatron_longpo.errors import UserError
from megatron_longpo.files import shown

if TYPE_CHECKING:
    from megatron_longpo.commands.progress import InputProgress
    from megatron_longpo.data.indexed import PairWriter
    from megatron_longpo.data.parallel import RenderSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help="JSONL files of pairs")
    add_dataset_options(parser)
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
        help=f"processes that tokenise (default: one for every {BYTES_PER_WORKER >> 20} MB of input, at most one per"
        f" core and {MOST_WORKERS})",
    )


def run(args: argparse.Namespace) -> int:
    """Build the dataset and print what is in it."""
    check(args)
    from megatron_longpo.commands.progress import InputProgress

    tokenizer = usable_tokenizer(args)
    settings = render_settings(args)
    num_bytes = sum(path.stat().st_size for path in args.input)
    with (
        open_writer(args, tokenizer) as writer,
        InputProgress("build", num_bytes) as progress,
    ):
        inputs = _write_pairs(args, settings, writer, progress)
        manifest = writer.finish(inputs)
    print_report(args.output, manifest, progress.seconds)
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse options that need no reading to be found wrong; raises UserError."""
    for path in args.input:
        if not path.is_file():
            raise UserError(f"--input {path}: no such file; give a JSONL file of pairs")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: needs at least 1")
    check_dataset_options(args)


def _write_pairs(
    args: argparse.Namespace, settings: "RenderSettings", writer: "PairWriter", progress: "InputProgress"
) -> list[InputFile]:
    from megatron_longpo.data.parallel import render_lines

    num_workers = args.workers or default_workers(sum(path.stat().st_size for path in args.input))
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


def _hashed_lines(paths: list[Path], inputs: list[InputFile]) -> Iterator[tuple[str, bytes]]:
    """The lines of all files; appends to ``inputs`` what each file was as soon as its last line was taken."""
    for path in paths:
        digest = hashlib.sha256()
        num_bytes = 0
        for where, line in read_lines(path):
            digest.update(line)
            num_bytes += len(line)
            yield where, line
        inputs.append(InputFile(path=shown(path), num_bytes=num_bytes, sha256=digest.hexdigest()))
