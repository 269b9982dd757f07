"""``megatron-longpo import-data``: published LongPO pairs, as text or as token ids -> indexed binary dataset.

The output is written whole or not at all, by the same writer as `build`'s. Rows are read one by one.
"""

import argparse
import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.commands.bad_rows import BadRows, add_bad_rows_option
from megatron_longpo.commands.dataset_output import (
    add_dataset_options,
    check_dataset_options,
    default_workers,
    open_writer,
    print_report,
    render_settings,
    usable_tokenizer,
)
from megatron_longpo.data.manifest import InputFile
from megatron_longpo.errors import TooLong, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.data.arrow import ArrowFile
    from megatron_longpo.data.longpo_release import Layout
    from megatron_longpo.data.render import RenderedPair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of datasets.save_to_disk, .arrow or .parquet files of published pairs, raw or tokenised",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "--overlong",
        choices=("refuse", "truncate", "skip"),
        default="refuse",
        help="a pair over the limit: stop; drop tokens from the middle of its context (raw pairs only); leave it out"
        " (default: refuse)",
    )
    add_bad_rows_option(parser)


def run(args: argparse.Namespace) -> int:
    """Import the pairs and print what is in the dataset."""
    check_dataset_options(args)
    from megatron_longpo.commands.progress import InputProgress
    from megatron_longpo.data.arrow import find_files

    files = find_files(args.input)
    layout = _common_layout(files)
    if layout == "tokenised" and args.overlong == "truncate":
        raise UserError(
            "--overlong truncate: tokenised pairs do not say where their context ends, so nothing can be cut from it;"
            " choose refuse or skip"
        )
    tokenizer = usable_tokenizer(args)
    inputs: list[InputFile] = []
    bad = BadRows(args.bad_rows)
    if layout == "raw":
        pairs = _raw_pairs(files, inputs, args, bad)
    else:
        pairs = _tokenised_pairs(files, inputs, tokenizer, args, bad)
    num_bytes = sum(file.num_bytes for file in files)
    bytes_per_row = num_bytes / sum(file.num_rows for file in files)
    with (
        open_writer(args, tokenizer) as writer,
        InputProgress("import-data", num_bytes) as progress,
        closing(pairs),
    ):
        for where, pair in pairs:
            num_tokens = 0
            if pair is None:
                writer.skip()
            else:
                writer.add(pair, where)
                num_tokens = sum(sum(item.lengths) for item in (pair.long, *pair.short))
            progress.advance(round(bytes_per_row), num_tokens)
        bad.print_report("import-data")
        manifest = writer.finish(inputs, bad.count)
    print_report(args.output, manifest, progress.seconds)
    return 0


def _common_layout(files: list["ArrowFile"]) -> "Layout":
    """The one layout of all files, the types of its columns checked."""
    from megatron_longpo.data.arrow import is_integer_lists
    from megatron_longpo.data.longpo_release import TOKENISED_COLUMNS, layout_of

    layouts: list[Layout] = [layout_of(file.columns, str(file.path)) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if layout != layouts[0]:
            raise UserError(
                f"{file.path}: {layout} pairs, but {files[0].path} has {layouts[0]} ones; import them apart"
            )
        for name in TOKENISED_COLUMNS if layout == "tokenised" else ():
            if not is_integer_lists(file.columns[name]):
                raise UserError(
                    f"{file.path}: the column {name} is {file.columns[name]}; it needs lists of integers, or lists of"
                    " such lists"
                )
    return layouts[0]


def _raw_pairs(
    files: list["ArrowFile"],
    inputs: list[InputFile],
    args: argparse.Namespace,
    bad: BadRows,
) -> Generator[tuple[str, "RenderedPair | None"]]:
    """Yield (where, pair), None in the place of a pair that is too long and skipped."""
    from megatron_longpo.data.parallel import render_lines

    num_workers = default_workers(sum(file.num_bytes for file in files))
    with closing(render_lines(_raw_lines(files, inputs, bad), render_settings(args), num_workers, bad.add)) as rendered:
        for line in rendered:
            yield line.where, line.rendered


def _raw_lines(files: list["ArrowFile"], inputs: list[InputFile], bad: BadRows) -> Iterator[tuple[str, bytes]]:
    from megatron_longpo.data.longpo_release import RAW_COLUMNS, raw_line

    for pair_id, where, row in _numbered_rows(files, RAW_COLUMNS, inputs):
        try:
            line = raw_line({name: value.as_py() for name, value in row.items()}, pair_id, where)
        except UnicodeDecodeError as error:
            bad.add(UserError(f"{where}: a text is not UTF-8 ({error}); repair or drop the row"))
            continue
        except UserError as error:
            bad.add(error)
            continue
        yield where, line


def _tokenised_pairs(
    files: list["ArrowFile"],
    inputs: list[InputFile],
    tokenizer: "PreTrainedTokenizerFast",
    args: argparse.Namespace,
    bad: BadRows,
) -> Generator[tuple[str, "RenderedPair | None"]]:
    """As `_raw_pairs`."""
    from megatron_longpo.data.arrow import integer_lists
    from megatron_longpo.data.labels import learn_template
    from megatron_longpo.data.longpo_release import TOKENISED_COLUMNS, recover_pair
    from megatron_longpo.data.questions import learn_questions

    template = learn_template(tokenizer)
    questions = learn_questions(tokenizer, template)
    for pair_id, where, row in _numbered_rows(files, TOKENISED_COLUMNS, inputs):
        try:
            columns = {name: integer_lists(value, name) for name, value in row.items()}
            rendered = recover_pair(columns, pair_id, template, args.max_length, args.overlong)
            if rendered is not None:
                questions.check(rendered.long, rendered.short)
        except TooLong as error:
            raise UserError(f"{where}: {error}") from error
        except UserError as error:
            bad.add(UserError(f"{where}: {error}"))
            continue
        yield where, rendered


def _numbered_rows(
    files: list["ArrowFile"], columns: tuple[str, ...], inputs: list[InputFile]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (id, where, row), appending to ``inputs``; published pairs have no id, so they are numbered."""
    from megatron_longpo.data.arrow import read_rows

    number = 0
    for file in files:
        for where, row in read_rows(file, columns):
            yield f"row-{number}", where, row
            number += 1
        with file.path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        inputs.append(InputFile(path=str(file.path), num_bytes=file.num_bytes, sha256=checksum))
