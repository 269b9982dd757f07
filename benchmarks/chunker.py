"""The chunker against the released way, which tokenises every paragraph alone, on the same real text.

    python -m benchmarks.chunker [--text FILE...] [--tokenizer DIR] [--rounds 3] [--chunk-tokens 16384 30720]

The corpus: by default the text of four packages of Debian 12, one document each, which ``apt-get download`` fetches.
The released way is timed as ``len(tokenizer(paragraph).input_ids)`` over the paragraphs, without the joining into
chunks that follows. The chunker's counter knows no word at first: every round makes a new one, whose set-up is part of
the time. Seconds of a processor stand beside those on the wall; where other programs run they say more, and give the
chunker nothing for tokenising new words on all cores. Beside it the time when all words are known, and what Punkt
needs to learn.
"""

import argparse
import gzip
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import write_result
from examples.quickstart.fetch_model import default_folder, fetch
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.chunk import Chunk, chunk_text
from megatron_longpo.generate.corpus.domains import Domain
from megatron_longpo.generate.corpus.sentences import Sentences, corpus_sample, train
from megatron_longpo.generate.corpus.token_count import TokenCounter

Kind = Literal["wall", "cpu"]
KINDS: tuple[Kind, ...] = ("wall", "cpu")
Seconds = dict[Kind, float]

PACKAGES: dict[str, tuple[Domain, str]] = {
    "anarchism": ("markdown", "usr/share/doc/anarchism/markdown/*.md.gz"),
    "jargon-text": ("prose", "usr/share/doc/jargon-text/jargon.txt.gz"),
    "perl-doc": ("prose", "usr/**/*.pod"),
    "python3.11-doc": ("prose", "usr/share/doc/python3.11/html/_sources/**/*.rst.txt"),
}
"""Package -> what its text is, and where."""


@dataclass(frozen=True, slots=True)
class Text:
    """One document to cut."""

    name: str
    domain: Domain
    text: str


def main() -> int:
    """Measure and write the raw numbers; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", help="files, a document each (default: Debian packages)")
    parser.add_argument("--tokenizer", type=Path, help="Hugging Face folder (default: SmolLM2's, fetched if need be)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-tokens", type=int, nargs=2, default=[16384, 30720], metavar=("MIN", "MAX"))
    args = parser.parse_args()
    try:
        texts = [Text(path.name, "prose", path.read_text(encoding="utf-8")) for path in args.text or []]
        folder = args.tokenizer or fetch(default_folder())
        measured = measure(texts or debian_texts(), folder, args.rounds, *args.chunk_tokens)
    except (UserError, OSError) as error:
        print(f"chunker: error: {error}", file=sys.stderr)
        return 2
    print(measured["median_ratio"])
    write_result("chunker", measured)
    return 0


def measure(texts: list[Text], folder: Path, rounds: int, min_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Both ways on one text after the other; every chunk's tokens are checked."""
    tokenizer: Any = load_tokenizer(folder)
    paragraphs = {
        text.name: [paragraph for paragraph in re.split(r"\n\s*\n", text.text) if paragraph.strip()] for text in texts
    }
    sample = corpus_sample(text.text for text in texts)
    sentences = Sentences(lambda: sample)
    sentences.within(sample, 0, 1)  # learned, or loaded from an earlier run: not part of the rounds

    def chunks(text: Text, counter: TokenCounter) -> list[Chunk]:
        found = chunk_text(text.text, text.domain, counter, sentences, min_tokens=min_tokens, max_tokens=max_tokens)
        return list(found)

    def released(text: Text) -> int:
        return sum(len(tokenizer(paragraph).input_ids) for paragraph in paragraphs[text.name])

    measured = list[dict[str, Any]]()
    for _ in range(rounds):
        setting_up, counter = seconds_of(lambda: TokenCounter(tokenizer.backend_tokenizer))
        rows = dict[str, dict[str, Seconds]]()
        for text in texts:
            rows[text.name] = {
                "released": seconds_of(partial(released, text))[0],
                "chunker": seconds_of(partial(chunks, text, counter))[0],
                "known_words": seconds_of(partial(chunks, text, counter))[0],
            }
            check(chunks(text, counter), text.text, tokenizer, max_tokens)
        measured.append({"setting_up": setting_up, "texts": rows})
        print(measured[-1], flush=True)
    return {
        "megabytes": {text.name: len(text.text.encode()) / 1e6 for text in texts},
        "paragraphs": {name: len(found) for name, found in paragraphs.items()},
        "chunk_tokens": [min_tokens, max_tokens],
        "punkt_learns": seconds_of(lambda: train(sample))[0],
        "rounds": measured,
        "median_ratio": {kind: statistics.median(_ratio(row, kind) for row in measured) for kind in KINDS},
    }


def _ratio(measured: dict[str, Any], kind: Kind) -> float:
    sums = {way: sum(row[way][kind] for row in measured["texts"].values()) for way in ("released", "chunker")}
    return sums["released"] / (measured["setting_up"][kind] + sums["chunker"])


def seconds_of(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """Seconds that ``work`` took, on the wall and of all processors together, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


def check(chunks: list[Chunk], text: str, tokenizer: Any, max_tokens: int) -> None:
    """A speed of wrong chunks is none."""
    pieces = [text[chunk.start : chunk.end] for chunk in chunks]
    counts = [len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces]
    if "".join(pieces) != text or counts != [chunk.num_tokens for chunk in chunks] or max(counts) > max_tokens:
        raise RuntimeError("the chunks are not those of the text, or not of the tokens they claim")


def debian_texts() -> list[Text]:
    """What the packages hold, one text each.

    Raises:
        UserError: this is no Debian 12, or the packages cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            command = ["apt-get", "download", *PACKAGES]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            archives = sorted(folder.glob("*.deb"))
            for archive in archives:
                subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"the text comes from Debian packages ({error}); give files with --text") from error
        if len(archives) != len(PACKAGES):
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"apt-get could not download {', '.join(PACKAGES)}: {reason}; give files with --text")
        return [
            Text(package, domain, "\n\n".join(read(path) for path in sorted(folder.glob(pattern))))
            for package, (domain, pattern) in PACKAGES.items()
        ]


def read(path: Path) -> str:
    """A file's text, decompressed; a few of Perl's are Latin-1."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


if __name__ == "__main__":
    sys.exit(main())
