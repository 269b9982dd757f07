"""``megatron-longpo evaluate prepare``: bring the benchmarks' data, once, on a machine with network."""

import argparse
import re
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.mirror import PLACES, recorded_mirror


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("--mirror", type=Path, required=True, metavar="DIR", help="folder to make, or to complete")
    parser.add_argument(
        "--sets", default=",".join(PLACES), metavar="NAME,...", help="which sets (default: all: %(default)s)"
    )
    parser.add_argument(
        "--revision",
        action="append",
        default=[],
        metavar="SET=HASH",
        help="bring a set at this commit instead of the pinned one (punkt_tab: sha256 of its archive); may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Bring what is missing and say what the mirror has."""
    names = [_set_name(name, "--sets") for name in options.sets.split(",")]
    revisions = dict(_revision(text) for text in options.revision)
    if unused := revisions.keys() - set(names):
        raise UserError(f"--revision {sorted(unused)[0]}=...: the set is not among --sets {options.sets}; add it")
    from megatron_longpo.evaluate.prepare.prepare import prepare

    try:
        prepare(options.mirror, list(dict.fromkeys(names)), revisions, say=_say)
    finally:
        _say(summary(options.mirror))


def summary(folder: Path) -> str:
    """What a mirror has: a line a set of name, size, files, source and note."""
    lines = [f"{folder}:"]
    for name, facts in recorded_mirror(folder).sets.items():
        megabytes = sum(file.bytes for file in facts.files.values()) / 1e6
        note = f" ({facts.note})" if facts.note else ""
        lines.append(f"  {name:<13}  {megabytes:7,.1f} MB  {len(facts.files):5,} files  {facts.source}{note}")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, flush=True)


def _set_name(name: str, option: str) -> str:
    if name not in PLACES:
        raise UserError(f"{option}: there is no set {name!r}; the sets are {', '.join(PLACES)}")
    return name


def _revision(text: str) -> tuple[str, str]:
    name, _, revision = text.partition("=")
    _set_name(name, "--revision")
    digits = 64 if name == "punkt_tab" else 40
    if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", revision):
        raise UserError(
            f"--revision {text}: give {name}={digits} hexadecimal digits; a branch or tag would not stay what it is"
        )
    return name, revision
