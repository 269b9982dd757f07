"""All shards' journals to the output: one JSONL file in the corpus's order, and a manifest of how it was made.

Memory holds one pair at a time, and of the others where they stand and a hash a turn.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron_longpo.data.pair import parse_pair
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.generate.corpus.documents import OF_A_SHARD
from megatron_longpo.generate.filters import without_thoughts
from megatron_longpo.generate.journal import Position, Shard
from megatron_longpo.generate.prompts import normalised
from megatron_longpo.journal import check_header, journal_lines, journal_text


@dataclass(slots=True)
class Tally:
    """What the shards say of themselves, added up."""

    sources: Counter[str] = field(default_factory=Counter[str])
    """Counts of documents and characters (document_groups.py names them)."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Filter -> turns."""
    contexts: int = 0
    asked: int = 0
    """Chunks asked about."""
    usable_turns: int = 0
    pairs: int = 0
    turns: int = 0
    """Turns in the pairs written."""
    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    thoughts: int = 0
    """Answers that opened with thoughts, which were removed."""
    seconds: float = 0.0
    """That the shards worked, one after the other."""


@dataclass(frozen=True, slots=True)
class _Place:
    journal: Path
    start: int
    """Byte at which the line begins."""


def manifest_path(output: Path) -> Path:
    """Path of the file beside the output that says how it was made."""
    return output.with_name(f"{output.name}.manifest.json")


def merge(folder: Path, num_shards: int, header: Mapping[str, Any], output: Path, *, min_turns: int) -> dict[str, Any]:
    """Write ``output`` and its manifest from the journals of all shards; returns the manifest.

    A turn whose question and chosen answer stand in an earlier pair already is left out (documents that repeat each
    other), and a pair that keeps fewer than ``min_turns`` with it.

    Raises:
        UserError: a shard is missing, is not done, or was made with other settings; or not one pair is left.
    """
    tally = Tally()
    places: dict[Position, _Place] = {}
    for number in range(1, num_shards + 1):
        shard = Shard(number, num_shards)
        _take_journal(folder / shard.file_name, shard, header, tally, places)
    with atomic_file(output) as partial:
        with partial.open("wb") as file:
            for line in _pairs(places, tally, min_turns):
                file.write(line)
        if not tally.pairs:
            raise UserError(_no_pair(tally))
        manifest = _manifest(header, num_shards, tally, partial)
        with atomic_file(manifest_path(output)) as beside:
            beside.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def engine_of(journal: Path) -> dict[str, str]:
    """The engine that a journal was begun with: merging opens none.

    Raises:
        UserError: no such journal.
    """
    nothing: dict[str, Any] = {}
    _, _, header = next(_lines(journal), (0, 0, nothing))
    return header.get("engine", {})


def _lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    if not path.is_file():
        raise UserError(f"{path}: no such journal; run generate with that --shard first")
    return journal_lines(path)


def _take_journal(
    path: Path, shard: Shard, header: Mapping[str, Any], tally: Tally, places: dict[Position, _Place]
) -> None:
    counts: dict[str, int] | None = None
    seconds = 0.0
    for start, _, line in _lines(path):
        match line["kind"]:
            case "header":
                check_header(path, line, {**header, "shard": asdict(shard)})
            case "session":
                counts = None
            case "answer":
                tally.requests += 1
                tally.thoughts += without_thoughts(line["text"]) != line["text"]
                tally.prompt_tokens += line["num_prompt_tokens"]
                tally.new_tokens += line["num_new_tokens"]
            case "document":
                tally.contexts += 1
                tally.asked += line["asked"]
                tally.usable_turns += line["turns"]
                tally.dropped.update(line["dropped"])
                if line["pair"] is not None:
                    places[Position(line["unit"], line["part"])] = _Place(path, start)
            case "end":
                counts = line["counts"]
            case kind:
                raise UserError(f"{path}: holds a line of the unknown kind {kind!r}; it is of another version")
        seconds = line.get("after", seconds)
    tally.seconds += seconds
    if counts is None:
        raise UserError(f"{path}: this shard is not done; run generate --shard {shard.number}/{shard.of} again")
    for name, count in counts.items():
        # Every shard walks the whole corpus.
        tally.sources[name] = tally.sources[name] + count if name in OF_A_SHARD else count


def _pairs(places: Mapping[Position, _Place], tally: Tally, min_turns: int) -> Iterator[bytes]:
    """The lines of the output, in the corpus's order."""
    met = set[bytes]()
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for position in sorted(places):
            place = places[position]
            if place.journal not in files:
                files[place.journal] = stack.enter_context(place.journal.open("rb"))
            files[place.journal].seek(place.start)
            pair = json.loads(journal_text(files[place.journal].readline()))["pair"]
            if _keep_new_turns(pair, met, tally) >= min_turns:
                line = json.dumps(pair, ensure_ascii=False).encode() + b"\n"
                parse_pair(line, f"{place.journal}: pair {pair['id']}")
                tally.pairs += 1
                tally.turns += len(pair["turns"])
                yield line


def _keep_new_turns(pair: dict[str, Any], met: set[bytes], tally: Tally) -> int:
    kept: list[int] = []
    for index, turn in enumerate(pair["turns"]):
        text = f"{normalised(turn['instruction'])}\n{normalised(turn['chosen'])}"
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest not in met:
            kept.append(index)
            met.add(digest)
    tally.dropped["duplicate"] += len(pair["turns"]) - len(kept)
    pair["turns"] = [pair["turns"][index] for index in kept]
    pair["meta"]["evidence_chunks"] = [pair["meta"]["evidence_chunks"][index] for index in kept]
    return len(kept)


def _manifest(header: Mapping[str, Any], num_shards: int, tally: Tally, output: Path) -> dict[str, Any]:
    with output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **header,
        "num_shards": num_shards,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sha256": digest,
        "counts": {**asdict(tally), "sources": dict(tally.sources), "dropped": dict(sorted((+tally.dropped).items()))},
    }


def _no_pair(tally: Tally) -> str:
    if not tally.contexts:
        return no_context(tally.sources)
    if not tally.asked and not tally.dropped:
        return (
            f"{tally.contexts} long contexts, and no question of --questions is about a chunk of one: `document` must "
            "be a row's id, FILE or FILE#ROW, and `evidence` must stand in the text as it is written there"
        )
    most = ", ".join(f"{name}: {count}" for name, count in tally.dropped.most_common(3)) or "none"
    return (
        f"{tally.contexts} long contexts gave {tally.usable_turns} usable turns of {tally.asked} and no pair with "
        f"enough turns (dropped most: {most}); lower --min-turns, raise --question-attempts, or see --no-filter"
    )


def no_context(counts: Mapping[str, int]) -> str:
    """What to say when documents gave no long context; ``counts`` are those of documents.Counts."""
    found = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count)
    return f"no document was long enough ({found or 'there is none'}); lower --length, or give longer documents"
