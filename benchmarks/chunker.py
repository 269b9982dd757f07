"""The chunker against the released way, which tokenises every paragraph alone, on the same real text.

    python -m benchmarks.chunker [--text FILE...] [--tokenizer DIR] [--rounds 3] [--chunk-tokens 16384 30720]

The text: by default that of Debian's packages ``anarchism`` (Markdown, 11.7 MB) and ``jargon-text`` (1.7 MB), which
``apt-get download`` fetches. The released way is timed as ``len(tokenizer(paragraph).input_ids)`` over the paragraphs,
without the joining into chunks that follows. The chunker is timed from nothing: every round makes a new counter, which
knows no word, and its set-up is part of the time. The two take turns, so that both meet the same other load; where that
is heavy, the ratio of processor seconds says more, and gives the chunker nothing for using all cores. Beside it the
time when the words are known, as in all but the first megabytes of a corpus, and what Punkt needs to learn.
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
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import write_result
from examples.quickstart.fetch_model import default_folder, fetch
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.chunk import Chunk, chunk_text
from megatron_longpo.generate.corpus.sentences import Sentences, corpus_sample, train
from megatron_longpo.generate.corpus.token_count import TokenCounter

Kind = Literal["wall", "cpu"]
Seconds = dict[Kind, float]

PACKAGES = ("anarchism", "jargon-text")
DOMAIN = "markdown"


def main() -> int:
    """Measure and write the raw numbers; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", help="files, joined (default: two Debian packages)")
    parser.add_argument("--tokenizer", type=Path, help="Hugging Face folder (default: SmolLM2's, fetched if need be)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-tokens", type=int, nargs=2, default=[16384, 30720], metavar=("MIN", "MAX"))
    args = parser.parse_args()
    try:
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in args.text) if args.text else debian_text()
        measured = measure(text, args.tokenizer or fetch(default_folder()), args.rounds, *args.chunk_tokens)
    except (UserError, OSError) as error:
        print(f"chunker: error: {error}", file=sys.stderr)
        return 2
    print(measured["median_ratio"])
    write_result("chunker", measured)
    return 0


def measure(text: str, folder: Path, rounds: int, min_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Both ways in turns; every chunk's tokens are checked."""
    tokenizer: Any = load_tokenizer(folder)
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    sample = corpus_sample([text])
    learning = seconds_of(lambda: train(sample))
    sentences = Sentences(lambda: sample)
    sentences.within(text, 0, 1)  # learned, or loaded from an earlier run: not part of the rounds

    def chunks(counter: TokenCounter) -> list[Chunk]:
        return list(chunk_text(text, DOMAIN, counter, sentences, min_tokens=min_tokens, max_tokens=max_tokens))

    def released() -> int:
        return sum(len(tokenizer(paragraph).input_ids) for paragraph in paragraphs)

    rows = list[dict[str, Seconds]]()
    for _ in range(rounds):
        counters = list[TokenCounter]()
        rows.append({"released": seconds_of(released)})
        rows[-1]["setting_up"] = seconds_of(lambda to=counters: to.append(TokenCounter(tokenizer.backend_tokenizer)))
        rows[-1]["chunker"] = seconds_of(lambda of=counters: chunks(of[0]))
        rows[-1]["known_words"] = seconds_of(lambda of=counters: chunks(of[0]))
        check(chunks(counters[0]), text, tokenizer, max_tokens)
        print(rows[-1], flush=True)
    return {
        "megabytes": len(text.encode()) / 1e6,
        "paragraphs": len(paragraphs),
        "chunk_tokens": [min_tokens, max_tokens],
        "punkt_learns": learning,
        "rows": rows,
        "median_ratio": {kind: statistics.median(_ratio(row, kind) for row in rows) for kind in ("wall", "cpu")},
    }


def _ratio(row: dict[str, Seconds], kind: Kind) -> float:
    return row["released"][kind] / (row["setting_up"][kind] + row["chunker"][kind])


def seconds_of(work: Callable[[], object]) -> Seconds:
    """Seconds that ``work`` takes, on the wall and of all processors together."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def check(chunks: list[Chunk], text: str, tokenizer: Any, max_tokens: int) -> None:
    """A speed of wrong chunks is none."""
    pieces = [text[chunk.start : chunk.end] for chunk in chunks]
    counts = [len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces]
    if "".join(pieces) != text or counts != [chunk.num_tokens for chunk in chunks] or max(counts) > max_tokens:
        raise RuntimeError("the chunks are not those of the text, or not of the tokens they claim")


def debian_text() -> str:
    """What the two packages hold, as one text.

    Raises:
        UserError: this is no Debian, or the packages cannot be fetched.
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
        documents = folder / "usr" / "share" / "doc"
        paths = [*sorted(documents.glob("anarchism/markdown/*.md.gz")), documents / "jargon-text" / "jargon.txt.gz"]
        return "\n\n".join(gzip.decompress(path.read_bytes()).decode("utf-8") for path in paths)


if __name__ == "__main__":
    sys.exit(main())
