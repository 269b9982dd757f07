"""The report on a run of self-generation: one HTML file, made of the output and its manifest.

How the pairs were made, what became of the chunks, lengths and how they differ between chosen and rejected, and some
pairs to read. The same pairs, manifest and seed give the same bytes.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.generate.report.histogram import Histogram, histogram
from megatron_longpo.generate.report.report_data import CountTokens, Lengths, ShownPair, read_report_data
from megatron_longpo.generate.report.summary import Step, duration, num_whole_contexts, waterfall
from megatron_longpo.generate.settings import Settings
from megatron_longpo.templates import render

_OPENING_CHARACTERS = 240
_MOST_LISTED = 20
_NOT_MADE_BY = ("settings", "engine", "counts", "num_shards", "written", "sha256")
"""Fields of the manifest that other sections show."""


class _Row(NamedTuple):
    name: str
    value: str
    usual: str | None = None
    """The recipe's value, where this is another one."""


def write_report(
    pairs: Path, manifest: Mapping[str, Any], report: Path, *, count_tokens: CountTokens | None, seed: int = 42
) -> None:
    """Write the report on ``pairs`` as one HTML file that needs no other.

    Args:
        pairs: the output of `merge.merge`.
        manifest: what it returned.
        count_tokens: tokens of each text; None: lengths are in characters.
        seed: draws the pairs that are shown.

    Raises:
        UserError: the pairs cannot be read or are not the manifest's.
    """
    lengths, shown = read_report_data(pairs, count_tokens, seed)
    counts = manifest["counts"]
    if (len(lengths.context), len(lengths.chosen)) != (counts["pairs"], counts["turns"]):
        raise UserError(
            f"{pairs}: holds {len(lengths.context)} pairs of {len(lengths.chosen)} turns, its manifest says "
            f"{counts['pairs']} of {counts['turns']}; give the manifest that was written with it"
        )
    page = render(
        "megatron_longpo.generate.report",
        "report.html.jinja",
        {
            "file_name": pairs.name.encode("utf-8", "replace").decode(),  # a name may be no UTF-8
            "written": manifest.get("written"),
            "seed": seed,
            "unit": lengths.unit,
            "key_numbers": _key_numbers(counts, lengths),
            "made": _made(manifest),
            "steps": waterfall(counts),
            "bar": partial(_bar, num_asked=counts["asked"]),
            "keep": manifest["settings"]["no_filter"],
            "num_whole_contexts": num_whole_contexts(counts),
            "length_rows": _length_rows(lengths),
            "figures": _figures(lengths),
            "difference": _difference(lengths),
            "sources": list(counts["sources"].items()),
            "shown": [
                {
                    "pair": one.pair,
                    "lengths": one.lengths,
                    "note": _note(one),
                    "opening": _opening(one),
                    "about": _about(one),
                }
                for one in shown
            ],
        },
    )
    with atomic_file(report) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _key_numbers(counts: Mapping[str, Any], lengths: Lengths) -> list[tuple[str, str, str]]:
    """Name, number, and a word on it."""
    longer = sum(difference > 0 for difference in lengths.differences)
    return [
        ("pairs", f"{counts['pairs']:,}", f"from {counts['contexts']:,} long contexts"),
        ("turns", f"{counts['turns']:,}", f"{counts['turns'] / counts['pairs']:.2f} a pair"),
        ("kept", f"{counts['turns'] / counts['asked']:.1%}", f"of {counts['asked']:,} chunks asked about"),
        ("chosen is longer", f"{longer / counts['turns']:.1%}", "of the turns"),
        ("long contexts", f"{statistics.median(lengths.context):,.0f}", f"{lengths.unit}, median"),
        ("time", duration(counts["seconds"]), f"{_per_second(counts, 'new_tokens')} new tokens/s"),
    ]


def _made(manifest: Mapping[str, Any]) -> list[tuple[str, list[_Row]]]:
    """The sections of "What made them"."""
    counts = manifest["counts"]
    usual = dict(_flat("", asdict(Settings())))
    settings = [
        _Row(name, value, usual[name] if usual.get(name, value) != value else None)
        for name, value in _flat("", manifest["settings"])
    ]
    others = {name: value for name, value in manifest.items() if name not in _NOT_MADE_BY}
    run = [
        _Row("shards", str(manifest["num_shards"])),
        _Row("requests", f"{counts['requests']:,}"),
        _Row("prompt tokens", f"{counts['prompt_tokens']:,} ({_per_second(counts, 'prompt_tokens')} per second)"),
        _Row("new tokens", f"{counts['new_tokens']:,} ({_per_second(counts, 'new_tokens')} per second)"),
        _Row("time, all shards together", duration(counts["seconds"])),
        _Row("answers whose thoughts were removed", f"{counts.get('thoughts', 0):,}"),
        _Row("SHA-256 of the pairs", manifest["sha256"]),
    ]
    sections = [("Model and engine", [_Row(*item) for item in _flat("", manifest["engine"])]), ("Run", run)]
    if others:
        sections.append(("Input", [_Row(*item) for item in _flat("", others)]))
    return [*sections, ("Settings", settings)]


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Names and values of a tree, one a leaf; of long lists the beginning."""
    if isinstance(value, Mapping):
        for key, below in cast(Mapping[str, object], value).items():
            yield from _flat(f"{name} {key.replace('_', ' ')}".strip(), below)
    elif isinstance(value, list | tuple):
        items = cast(Sequence[object], value)
        shown = [_text(one) for one in items[:_MOST_LISTED]]
        more = [f"and {len(items) - _MOST_LISTED:,} more"] if len(items) > _MOST_LISTED else []
        yield name, ", ".join([*shown, *more]) or "none"
    else:
        yield name, str(value) if name == "seed" else _text(value)


def _text(value: object) -> str:
    if value is None:
        return "not given"
    return f"{value:,}" if type(value) is int else str(value)


def _per_second(counts: Mapping[str, Any], name: str) -> str:
    return f"{counts[name] / counts['seconds']:,.1f}" if counts["seconds"] else "?"


def _bar(step: Step, num_asked: int) -> tuple[str, str]:
    """Where its bar begins and how long it is, in percent: a drop hangs at the end of what is left after it."""
    start = step.left if step.is_drop else 0
    return f"{100 * start / num_asked:.3f}", f"{100 * step.count / num_asked:.3f}"


def _length_rows(lengths: Lengths) -> list[tuple[str, int, int, int, int, int, int]]:
    """Kind of text, and number, least, median, mean, 90th percentile and greatest of its lengths."""
    rows: list[tuple[str, int, int, int, int, int, int]] = []
    kinds = {
        "long context": lengths.context,
        "short context": lengths.short_context,
        "instruction": lengths.instruction,
        "chosen": lengths.chosen,
        "rejected": lengths.rejected,
    }
    for name, values in kinds.items():
        ordered = sorted(values)
        at_most = ordered[-(-9 * len(ordered) // 10) - 1]
        median, mean = round(statistics.median(ordered)), round(statistics.fmean(ordered))
        rows.append((name, len(ordered), ordered[0], median, mean, at_most, ordered[-1]))
    return rows


def _figures(lengths: Lengths) -> list[Histogram]:
    is_sample = lengths.num_short_pairs < len(lengths.context)
    note = f"of {lengths.num_short_pairs:,} pairs, drawn" if is_sample else ""
    return [
        histogram("Long contexts", {"": lengths.context}, "pairs"),
        histogram("Short contexts", {"": lengths.short_context}, "turns", note=note),
        histogram("Instructions", {"": lengths.instruction}, "turns"),
        histogram("Answers", {"chosen": lengths.chosen, "rejected": lengths.rejected}, "turns"),
    ]


def _difference(lengths: Lengths) -> dict[str, Any]:
    """What "Differences in length" shows."""
    differences = lengths.differences
    chosen = [value for value in differences if value > 0]
    rejected = [value for value in differences if value < 0]
    num_equal = len(differences) - len(chosen) - len(rejected)
    series = {"rejected": rejected, "chosen": chosen, "": [0] * num_equal}
    return {
        "figure": histogram("Chosen minus rejected", series, "turns", is_stacked=True),
        "median": _signed(statistics.median(differences)),
        "mean": _signed(statistics.fmean(differences)),
        "sides": [("chosen", len(chosen)), ("equal", num_equal), ("rejected", len(rejected))],
        "num_turns": len(differences),
    }


def _signed(value: float) -> str:
    return f"{value:+,.1f}".removesuffix(".0").replace("-", "\u2212")


def _note(one: ShownPair) -> str:
    """What the pair says of itself, as far as it does."""
    meta = one.pair.meta
    notes = [str(meta["domain"])] if "domain" in meta else []
    if "num_context_tokens" in meta:
        notes.append(f"{_text(meta['num_context_tokens'])} tokens")
    return " \u00b7 ".join(notes)


def _about(one: ShownPair) -> list[str]:
    """What is known of each turn but its texts."""
    meta, num_turns = one.pair.meta, len(one.pair.turns)
    notes = [f"turn {number} of {num_turns}" for number in range(1, num_turns + 1)]
    chunks = meta.get("evidence_chunks", [])
    if len(chunks) != num_turns or "num_chunks" not in meta:
        return notes
    return [
        f"{note}, about chunk {chunk + 1} of {meta['num_chunks']}" for note, chunk in zip(notes, chunks, strict=True)
    ]


def _opening(one: ShownPair) -> str:
    """The first words of the long context."""
    text = " ".join(one.pair.context[: 4 * _OPENING_CHARACTERS].split())
    return text if len(text) <= _OPENING_CHARACTERS else f"{text[:_OPENING_CHARACTERS].rsplit(' ', 1)[0]} ..."
