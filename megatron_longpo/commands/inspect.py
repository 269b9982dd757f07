"""``megatron-longpo inspect``: one stored pair as text with its response spans in colour, or as JSON.

Text needs ``--tokenizer``, the one the dataset was built with; token ids, spans and reference log-probs do not.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from megatron_longpo.commands.dataset_output import given_template
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.data.indexed import PairReader
    from megatron_longpo.data.render import Branch, TrunkAndBranches

_SHOWN_TRUNK_TOKENS = 120
"""Tokens shown at either end of a trunk, unless --full."""
_SPAN_STYLES = {"chosen": "bold green", "rejected": "bold red"}

Description = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--data", type=Path, required=True, metavar="PREFIX", help="a dataset written by build")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, metavar="I", help="the pair's place, from 0 (default: 0)")
    which.add_argument("--id", metavar="ID", help="the pair's id")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="show text: the tokenizer it was built with")
    parser.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="with --tokenizer: the template it was built with, if a file"
    )
    parser.add_argument("--tokens", action="store_true", help="show token ids too")
    parser.add_argument("--full", action="store_true", help="show trunks whole, not only their two ends")
    parser.add_argument("--json", action="store_true", help="print everything about the pair as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print one pair."""
    if args.chat_template and not args.tokenizer:
        raise UserError(f"--chat-template {args.chat_template} says nothing without --tokenizer; give the tokenizer")
    from megatron_longpo.data.indexed import PairReader

    reader = PairReader(args.data)
    index = args.index if args.id is None else reader.find(args.id)
    if not 0 <= index < len(reader):
        raise UserError(f"--index {index}: {args.data} has {len(reader)} pairs; give 0 to {len(reader) - 1}")
    tokenizer = _matching_tokenizer(args, reader) if args.tokenizer else None
    description = describe(reader, index, tokenizer)
    if args.json:
        print(json.dumps(description, ensure_ascii=False, allow_nan=False))
    else:
        _print(description, len(reader), _View(tokenizer, args.tokens, args.full))
    return 0


def describe(reader: "PairReader", index: int, tokenizer: "PreTrainedTokenizerFast | None") -> Description:
    """Everything known about one pair, ready for JSON; texts only with a tokenizer, log-probs only if they are cached.

    ``conversations`` holds the long one, then the short one of each turn. A conversation has ``name``, ``trunk`` (ids),
    ``trunk_text``, and a branch under ``chosen`` and under ``rejected``: ``tokens`` (ids) and ``responses``, one for
    each span, with ``span`` and ``text``. ``reference_logp`` holds for each context that was scored, ``short`` or
    ``long``, [num_turns, 2] in nats, chosen then rejected.
    """
    pair, record = reader[index], reader.record(index)
    names = ["long", *(f"short, turn {turn}" for turn in range(len(pair.short)))]
    conversations = [
        _describe_conversation(name, item, tokenizer)
        for name, item in zip(names, (pair.long, *pair.short), strict=True)
    ]
    return {
        "index": index,
        **record._asdict(),
        "conversations": conversations,
        "reference_logp": _reference_logp(reader, index),
    }


def _describe_conversation(
    name: str, item: "TrunkAndBranches", tokenizer: "PreTrainedTokenizerFast | None"
) -> Description:
    description: Description = {"name": name, "trunk": item.trunk.tolist()}
    if tokenizer is not None:
        description["trunk_text"] = _text(tokenizer, item.trunk.tolist())
    for label, branch in (("chosen", item.chosen), ("rejected", item.rejected)):
        description[label] = {"tokens": branch.tokens.tolist(), "responses": _responses(branch, tokenizer)}
    return description


def _responses(branch: "Branch", tokenizer: "PreTrainedTokenizerFast | None") -> list[Description]:
    spans: list[list[int]] = branch.spans.tolist()
    responses: list[Description] = [{"span": span} for span in spans]
    if tokenizer is not None:
        texts = _texts(tokenizer, branch.tokens.tolist(), spans)
        for response, (_, text) in zip(responses, texts, strict=True):
            response["text"] = text
    return responses


def _reference_logp(reader: "PairReader", index: int) -> dict[str, list[list[float]]]:
    from megatron_longpo.data.render import Context
    from megatron_longpo.reference.cache import ReferenceCache, default_path

    found: dict[str, list[list[float]]] = {}
    for context in get_args(Context):
        path = default_path(reader.prefix, context)
        if not path.exists():
            continue
        cache = ReferenceCache.open(path)
        if cache.manifest.dataset_fingerprint != reader.manifest.fingerprint:
            raise UserError(
                f"{path}: scored for another dataset than {reader.prefix}; delete it or score the dataset again"
            )
        found[context] = cache[index].tolist()
    return found


def _matching_tokenizer(args: argparse.Namespace, reader: "PairReader") -> "PreTrainedTokenizerFast":
    from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(args.tokenizer, given_template(args))
    fingerprint = tokenizer_fingerprint(tokenizer)
    if fingerprint != reader.manifest.tokenizer_fingerprint:
        raise UserError(
            f"--tokenizer {args.tokenizer}: fingerprint {fingerprint[:12]}, but {reader.prefix} was built with"
            f" {reader.manifest.tokenizer_fingerprint[:12]}; give the tokenizer and template it was built with"
            " (--tokenizer, --chat-template)"
        )
    return tokenizer


def _text(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _texts(
    tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[int], spans: Sequence[Sequence[int]]
) -> list[tuple[str, str]]:
    """Per span: the text between the span before it and it, and its own.

    As differences of decoded beginnings, because some tokenizers drop the space that a decoded text begins with.
    """
    texts: list[tuple[str, str]] = []
    position = 0
    for start, end in spans:
        before, text = _text(tokenizer, tokens[:start]), _text(tokenizer, tokens[:end])
        texts.append((before[position:], text[len(before) :]))
        position = len(text)
    return texts


def _print(description: Description, num_pairs: int, view: "_View") -> None:
    console = _console()
    console.print(
        f"pair {description['index']} of {num_pairs}: {description['id']} ({description['source']};"
        f" {description['num_removed']} context tokens removed)"
    )
    if description["meta"]:
        console.print(f"meta: {json.dumps(description['meta'], ensure_ascii=False)}")
    for conversation in description["conversations"]:
        _print_conversation(console, conversation, view)
    for context, turns in description["reference_logp"].items():
        for turn, (chosen, rejected) in enumerate(turns):
            where = f"reference on the {context} context, turn {turn}"
            console.print(f"{where}: chosen {chosen:.6f} nats, rejected {rejected:.6f} nats")


def _print_conversation(console: "Console", conversation: Description, view: "_View") -> None:
    from rich.text import Text

    trunk: list[int] = conversation["trunk"]
    console.print(f"\n-- {conversation['name']}: trunk of {len(trunk)} tokens", style="bold")
    num_hidden = 0 if view.full else max(len(trunk) - 2 * _SHOWN_TRUNK_TOKENS, 0)
    if num_hidden:
        console.print(view.show(trunk[:_SHOWN_TRUNK_TOKENS]))
        console.print(f"[... {num_hidden} tokens; --full shows them ...]", style="dim")
        trunk = trunk[-_SHOWN_TRUNK_TOKENS:]
    console.print(view.show(trunk))
    for label, style in _SPAN_STYLES.items():
        tokens: list[int] = conversation[label]["tokens"]
        spans: list[list[int]] = [response["span"] for response in conversation[label]["responses"]]
        places = ", ".join(f"[{start}, {end})" for start, end in spans)
        console.print(f"-- {label}: {len(tokens)} tokens, responses {places}", style=style)
        for before, response in view.show_branch(tokens, spans):
            console.print(Text.assemble(before, (response, style)), end="")
        console.print()


@dataclass(frozen=True, slots=True)
class _View:
    """How token ids are shown."""

    tokenizer: "PreTrainedTokenizerFast | None"
    ids: bool
    full: bool

    def show(self, tokens: Sequence[int]) -> str:
        text = _text(self.tokenizer, tokens) if self.tokenizer is not None else ""
        return text + self._ids(tokens)

    def show_branch(self, tokens: Sequence[int], spans: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
        """Per span: what stands between the span before it and it, and what stands in it."""
        texts = [("", "")] * len(spans) if self.tokenizer is None else _texts(self.tokenizer, tokens, spans)
        ends = [0, *(end for _, end in spans)]
        return [
            (before + self._ids(tokens[last:start]), response + self._ids(tokens[start:end]))
            for (before, response), last, (start, end) in zip(texts, ends, spans, strict=False)
        ]

    def _ids(self, tokens: Sequence[int]) -> str:
        return f" {list(tokens)} " if self.ids or self.tokenizer is None else ""


def _console() -> "Console":
    from rich.console import Console

    # What is shown is the user's text: no markup, no emoji codes, nothing wrapped or highlighted.
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
