"""The options of ``megatron-longpo generate``, and the settings they mean."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_longpo.commands.engine_options import add_engine_options
from megatron_longpo.errors import UserError
from megatron_longpo.generate.journal import Shard
from megatron_longpo.generate.settings import FILTERS, POLICY_ROPE, PRESETS, Settings, from_preset
from megatron_longpo.hf.rope import checked
from megatron_longpo.strict_json import is_object

PROCEDURE = {
    "seed": "of everything that is drawn",
    "length": "tokens of a whole long conversation at most",
    "min_length": "documents of fewer tokens are joined with others, or left out",
    "num_turns": "turns of a pair at most",
    "min_turns": "a document with fewer usable turns gives no pair",
    "min_chunk_tokens": "tokens of a chunk at least",
    "max_chunk_tokens": "tokens of a chunk at most",
    "num_questions": "questions asked for at a time, of which one is kept",
    "question_attempts": "lists of questions asked for until one is usable",
    "question_room": "tokens kept free for a turn's instruction and the chat template around it",
    "max_short_tokens": "a short conversation of this many tokens or more is dropped",
}
"""Fields of `Settings` that are options of their own, and their help."""
LIMITS = {
    "min_answer_characters": "an answer shorter than this counts as empty",
    "max_repetition": "an answer that repeats more of its word sequences is dropped",
    "max_similarity": "answers more similar than this are dropped; 1 keeps all that differ",
}
"""The same, of the filters."""
SAMPLING = {"temperature": "temperature", "top_p": "top-p", "max_new_tokens": "tokens"}
"""Fields of `Sampling`, and what they are called in an option."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options, in the groups that --help shows."""
    default = Settings()
    _add_input(parser)
    _add_procedure(parser.add_argument_group("procedure (the defaults are the released recipe's)"), default)
    _add_filters(parser.add_argument_group("filters"), default)
    _add_engine(parser.add_argument_group("engine"))
    _add_scale(parser.add_argument_group("scale"))


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--documents",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files, folders or globs: text, Markdown, LaTeX, source code, JSONL, parquet, Arrow; .gz, .bz2, .zst",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face folder of the model")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSONL file of pairs to make")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="questions of your own, JSON lines of document, question and evidence, in place of the model's",
    )
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="of JSONL, parquet and Arrow (default: text)"
    )
    parser.add_argument(
        "--domain",
        choices=("prose", "markdown", "latex", "code"),
        help="how to split the documents (default: by file suffix and a look at the text)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_procedure(group: argparse._ArgumentGroup, default: Settings) -> None:
    group.add_argument("--preset", choices=PRESETS, help="lengths and the policy's RoPE of a known recipe")
    _add_figures(group, PROCEDURE, default)
    for name, sampling in (("question", default.question), ("answer", default.answer)):
        for field, option in SAMPLING.items():
            value = getattr(sampling, field)
            shown = f"of {name}s (default: {value})"
            group.add_argument(f"--{name}-{option}", dest=f"{name}_{field}", type=type(value), metavar="X", help=shown)
    group.add_argument(
        "--short-documents",
        choices=("join", "skip"),
        default="join",
        help="documents too short for a long context: joined with their neighbours (default), or left out",
    )
    group.add_argument(
        "--max-duplicate",
        type=float,
        default=0.5,
        metavar="X",
        help="a document with more of its text than this in earlier documents is left out (default: 0.5)",
    )
    group.add_argument("--max-contexts", type=int, metavar="N", help="stop after so many long contexts, for a trial")


def _add_filters(group: argparse._ArgumentGroup, default: Settings) -> None:
    names = ", ".join(name.replace(" ", "-") for name in FILTERS)
    shown = f"filters to turn off; in their order they are {names}"
    group.add_argument("--no-filter", nargs="+", action="extend", default=[], metavar="FILTER", help=shown)
    group.add_argument("--keep", dest="no_filter", nargs="+", action="extend", help=argparse.SUPPRESS)  # its old name
    _add_figures(group, LIMITS, default)


def _add_figures(group: argparse._ArgumentGroup, figures: dict[str, str], default: Settings) -> None:
    for name, text in figures.items():
        value = getattr(default, name)
        shown = f"{text} (default: {value})"
        group.add_argument(f"--{name.replace('_', '-')}", type=type(value), metavar="N", help=shown)


def _add_engine(group: argparse._ArgumentGroup) -> None:
    add_engine_options(group)
    group.add_argument(
        "--long-endpoint", metavar="URL", help="for the answers from the long context (default: --endpoint)"
    )
    group.add_argument(
        "--long-served-model", metavar="NAME", help="of that at --long-endpoint (default: --served-model)"
    )
    group.add_argument(
        "--policy-rope",
        metavar="JSON",
        help="the policy's RoPE, for the answers from the long context: rope_parameters as in config.json "
        "(default: the preset's, else the model's own)",
    )
    group.add_argument("--long-rope", dest="policy_rope", help=argparse.SUPPRESS)  # its old name


def _add_scale(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--shard", default="1/1", metavar="I/N", help="do part I of N only; --merge joins them")
    group.add_argument("--merge", type=int, metavar="N", help="write the output from N shards that are done")
    group.add_argument(
        "--runner", choices=("local", "ray"), default="local", help="where engines run: here, or on a Ray cluster"
    )
    group.add_argument(
        "--num-engines", type=int, default=1, metavar="N", help="engines on the Ray cluster (default: 1)"
    )
    group.add_argument(
        "--gpus-per-engine", type=float, default=1, metavar="X", help="that Ray keeps for each engine (default: 1)"
    )
    group.add_argument("--ray-address", metavar="ADDR", help="of its head (default: RAY_ADDRESS, else a local cluster)")
    group.add_argument(
        "--dry-run", action="store_true", help="count documents, requests and tokens, and time a document"
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The procedure's settings; raises UserError for those that contradict each other, and for words not in UTF-8."""
    for option, word in vars(args).items():
        if isinstance(word, str) and any("\ud800" <= character <= "\udfff" for character in word):
            raise UserError(f"--{option.replace('_', '-')} {word!r}: not UTF-8; it is sent and stored as text")
    given: dict[str, Any] = {name: vars(args)[name] for name in (*PROCEDURE, *LIMITS)}
    if args.num_turns is not None and args.min_turns is None:
        given["min_turns"] = args.num_turns
    if args.length is not None and args.min_length is None:
        given["min_length"] = args.length * 5 // 8
    settings = from_preset(args.preset, no_filter=tuple(map(_filter_name, args.no_filter)), **given)
    for name in ("question", "answer"):
        sampling = {field: vars(args)[f"{name}_{field}"] for field in SAMPLING}
        changed = {field: value for field, value in sampling.items() if value is not None}
        settings = replace(settings, **{name: replace(getattr(settings, name), **changed)})
    settings.check()
    return settings


def _filter_name(given: str) -> Any:
    """As `Settings` has it; "alike" is the old name of one. `Settings.check` refuses what is no filter."""
    return "too similar" if given == "alike" else given.replace("-", " ")


def shard_of(args: argparse.Namespace) -> Shard:
    """The part of the corpus that ``--shard`` names."""
    number, _, of = args.shard.partition("/")
    if not (number.isdecimal() and of.isdecimal() and len(args.shard) < 20):
        raise UserError(f"--shard {args.shard!r}: give i/n, like 1/8")
    return Shard(int(number), int(of))


def policy_rope_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """The policy's RoPE, or None for the model's own.

    Raises:
        UserError: it is no JSON, or no RoPE that training knows; naming the field.
    """
    if args.policy_rope is None:
        return POLICY_ROPE.get(args.preset) if args.preset else None
    example = json.dumps(POLICY_ROPE["mistral-128k"])
    try:
        rope = json.loads(args.policy_rope)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--policy-rope: not JSON ({error}); give an object like {example}") from error
    if not is_object(rope) or "rope_type" not in rope:
        raise UserError(f"--policy-rope {args.policy_rope}: needs an object with rope_type, like {example}")
    return checked(rope, "--policy-rope").as_dict()
