"""``megatron-longpo VERB ...``: one parser a verb, imported only when its verb is asked for."""

import argparse
import importlib
import os
import select
import sys
from io import TextIOWrapper
from types import ModuleType

from megatron_longpo import __version__
from megatron_longpo.errors import UserError
from megatron_longpo.quiet import quiet_libraries

VERBS = {
    "launch": "recipe -> the whole run, from documents to tables, here or on a cluster",
    "generate": "long documents -> JSONL preference pairs, by the model itself",
    "build": "JSONL preference pairs -> indexed binary dataset",
    "import-data": "published LongPO pairs (Arrow, parquet) -> indexed binary dataset",
    "inspect": "show a stored pair as text, ids, spans and reference log-probs",
    "import-hf": "Hugging Face folder -> Megatron distributed checkpoint",
    "export-hf": "Megatron distributed checkpoint -> Hugging Face folder",
    "score-reference": "reference log-probs of a dataset, stored beside it",
    "plan": "will training fit on its GPUs, and how long will it take",
    "report": "curves of training runs as one page, with recipe and evaluation",
    "evaluate": "RULER, InfiniteBench and short tasks: the paper's three tables",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 2 something the user can fix, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in VERBS:
        return _outer_parser(argv)
    return run_verb(argv[0], argv[1:])


def run_verb(verb: str, argv: list[str]) -> int:
    """Parse ``argv`` for ``verb`` and run it; ``tools/<verb>.py`` calls this too."""
    quiet_libraries()
    module, parser = _module(verb), verb_parser(verb)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8
    try:
        status = module.run(parser.parse_args(argv)) or 0
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # as of a program that SIGPIPE ends
        print(f"megatron-longpo {verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"megatron-longpo {verb}: interrupted", file=sys.stderr)
        return 130
    return status


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb."""
    # An abbreviation could come to mean another option with the next release.
    parser = argparse.ArgumentParser(prog=f"megatron-longpo {verb}", description=VERBS[verb], allow_abbrev=False)
    _module(verb).add_arguments(parser)
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"megatron_longpo.commands.{verb.replace('-', '_')}")


def _nobody_reads() -> bool:
    """What reads our output has enough, as under `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
    return True


def _outer_parser(argv: list[str]) -> int:
    lines = "\n".join(f"  {verb:<16} {help_line}" for verb, help_line in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="megatron-longpo",
        description="LongPO on Megatron-Core.",
        epilog=f"verbs:\n{lines}\n\nmegatron-longpo VERB --help shows a verb's options; training is\n"
        "torchrun ... -m megatron_longpo.train --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"megatron-longpo {__version__}")
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.parse_args(argv[:1] or ["--help"])
    return 2


if __name__ == "__main__":
    sys.exit(main())
