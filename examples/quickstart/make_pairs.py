"""Make the quickstart's pairs: SmolLM2 asks, answers from the short chunk, answers from the long document.

Usage: python -m examples.quickstart.make_pairs --output pairs.jsonl [--num-pairs 24] [--seed 1] [--model DIR]

For each document (4-6 country articles) the model asks a question about one of its chunks; the *chosen* answer is
its own with that chunk alone before it, the *rejected* one with the whole document. Further turns ask about other
chunks. Each document has its own seed and is written to a journal beside the output as soon as it is done, so an
interrupted run goes on where it was, and with the same versions and machine gives the same file.
"""

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.quickstart.fetch_model import MODEL_NAME, default_folder, fetch
from examples.quickstart.text import PACKAGE, SOURCE, Document, make_documents, read_chunks
from examples.quickstart.writer import Message, Writer, has_only_names_of, load_writer
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file

MAX_CHUNK_CHARACTERS = 900
MIN_DOCUMENT_CHARACTERS = 2900
CONTEXT_TOKENS = range(700, 1451)
"""How long a context with its chat template may be, so that a trunk (with its instruction) has 700-1500 tokens."""
NUM_TURNS = (1, 3, 2)
"""Turns to aim at, document by document in rotation."""
BATCHES_PER_CHUNK = 3
"""Batches of candidate questions."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the output; a journal made with other settings is not continued."""

    num_pairs: int
    seed: int
    model: str


@dataclass(frozen=True)
class Turn:
    """One turn of a pair and the number of the chunk that holds its evidence."""

    chunk_number: int
    short_context: str
    instruction: str
    chosen: str
    rejected: str


def main() -> int:
    """Make the pairs; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the quickstart's preference pairs with the model itself.")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to make")
    parser.add_argument("--num-pairs", type=int, default=24, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of documents and questions (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: SmolLM2, fetched when missing)")
    args = parser.parse_args()
    try:
        if args.output.exists():
            raise UserError(f"{args.output} exists; remove it or give another --output")
        model_name = MODEL_NAME if args.model is None else args.model.name
        settings = Settings(num_pairs=args.num_pairs, seed=args.seed, model=model_name)
        make_pairs(args.model or fetch(default_folder()), args.output, settings)
    except (UserError, OSError) as error:
        print(f"make_pairs: error: {error}", file=sys.stderr)
        return 2
    return 0


def make_pairs(model_folder: Path, output: Path, settings: Settings) -> None:
    """Write ``settings.num_pairs`` pairs to ``output`` (format: DESIGN section 7, JSONL), whole or not at all.

    Raises:
        UserError: the journal is of other settings, or the text is used up before there are enough pairs.
    """
    journal = output.with_name(f".{output.name}.journal")
    done = read_journal(journal, settings)
    writer = load_writer(model_folder)
    documents = make_documents(read_chunks(MAX_CHUNK_CHARACTERS), settings.seed, MIN_DOCUMENT_CHARACTERS)
    pairs = [pair for pair in done.values() if pair is not None]
    with tqdm(total=settings.num_pairs, initial=len(pairs), unit="pair") as progress:
        for document in documents:
            if len(pairs) == settings.num_pairs:
                break
            if document.number in done:
                continue
            pair = make_pair(writer, document, settings)
            with journal.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"document": document.number, "pair": pair}) + "\n")
            if pair is not None:
                pairs.append(pair)
                progress.update()
    if len(pairs) < settings.num_pairs:
        raise UserError(f"{len(documents)} documents gave {len(pairs)} pairs of --num-pairs {settings.num_pairs}")
    with atomic_file(output) as partial:
        partial.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    journal.unlink()


def read_journal(journal: Path, settings: Settings) -> dict[int, dict[str, Any] | None]:
    """Document number -> its pair, or None where it gave none; a new journal is opened with ``settings``."""
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
        return {}
    text = journal.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    if json.loads(lines[0]) != asdict(settings):
        raise UserError(f"{journal} was made with {lines[0].strip()}, now {asdict(settings)}; remove it to start anew")
    if not lines[-1].endswith("\n"):  # killed within a line: that document is done again
        lines = lines[:-1]
        journal.write_text("".join(lines), encoding="utf-8")
    entries = [json.loads(line) for line in lines[1:]]
    return {entry["document"]: entry["pair"] for entry in entries}


def make_pair(writer: Writer, document: Document, settings: Settings) -> dict[str, Any] | None:
    """The pair of one document with as many turns as the model managed; None if none, or if the length is wrong."""
    if writer.prompt_ids([_user(document.context)]).shape[1] not in CONTEXT_TOKENS:
        return None
    seed = settings.seed * 1_000_003 + document.number
    rng = random.Random(seed)
    torch.manual_seed(seed)
    chunk_numbers = list(range(len(document.chunks)))
    rng.shuffle(chunk_numbers)
    turns: list[Turn] = []
    for chunk_number in chunk_numbers:
        turn = make_turn(writer, document, chunk_number, turns, rng)
        if turn is not None:
            turns.append(turn)
        if len(turns) == NUM_TURNS[document.number % len(NUM_TURNS)]:
            break
    if not turns:
        return None
    fields = ("short_context", "instruction", "chosen", "rejected")
    return {
        "id": f"factbook-{settings.seed}-{document.number:03d}",
        "context": document.context,
        "turns": [{field: getattr(turn, field) for field in fields} for turn in turns],
        "meta": {
            "source": SOURCE,
            "package": PACKAGE,
            "chunks": [chunk.country for chunk in document.chunks],
            "evidence_chunks": [turn.chunk_number for turn in turns],
            "model": settings.model,
            "seed": seed,
        },
    }


def make_turn(
    writer: Writer, document: Document, chunk_number: int, previous: list[Turn], rng: random.Random
) -> Turn | None:
    """A question about one chunk and its two answers, or None if none got two usable, different answers."""
    chunk = document.chunks[chunk_number]
    for question in (question for _ in range(BATCHES_PER_CHUNK) for question in writer.questions(chunk, rng)):
        instruction = f"{question} Answer in one sentence."
        chosen = writer.answer([_user(f"{chunk.text}\n\n{instruction}")])
        if chosen is None or not has_only_names_of(f"{chunk.text}\n{question}", chosen):
            continue
        rejected = writer.answer(long_conversation(document.context, previous, instruction))
        if rejected is not None and rejected != chosen:
            return Turn(chunk_number, chunk.text, instruction, chosen, rejected)
    return None


def long_conversation(context: str, previous: list[Turn], instruction: str) -> list[Message]:
    """The conversation the rejected answer to ``instruction`` comes from: its history holds the rejected answers."""
    instructions = [*(turn.instruction for turn in previous), instruction]
    messages = [_user(f"{context}\n\n{instructions[0]}")]
    for turn, next_instruction in zip(previous, instructions[1:], strict=True):
        messages += [{"role": "assistant", "content": turn.rejected}, _user(next_instruction)]
    return messages


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


if __name__ == "__main__":
    sys.exit(main())
