"""Where sentences begin: nltk's Punkt, trained on the corpus itself, so that nothing is downloaded.

Punkt learns abbreviations and frequent openings of sentences from plain text (Kiss and Strunk 2006). It needs some ten
seconds for two million characters, so what it learned is kept, as JSON under the hash of the text it learned from. Full
stops of scripts that put no blank after them end a sentence wherever they stand.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_longpo.errors import import_optional
from megatron_longpo.files import atomic_file, cache_folder

SAMPLE_CHARACTERS = 2_000_000
CELL = 4096
"""Characters that Punkt is shown at a time; it decides by a word and its neighbours."""
MARGIN = 512
"""Characters shown before and after them, whose own borders do not count."""

# Ideographic and half-width full stops, full-width marks, Devanagari and Burmese dandas, Arabic and Ethiopic marks;
# then closing quotes and brackets, which belong to the sentence.
_OTHER_STOP = re.compile(
    "[\u3002\uff61\uff0e\uff01\uff1f\u0964\u0965\u104b\u061f\u06d4\u1362]+[\u300d\u300f\u201d\u2019\uff09\u3011\u300b]*\\s*"
)


def corpus_sample(texts: Iterable[str]) -> str:
    """The first `SAMPLE_CHARACTERS` of a corpus; reads no further."""
    taken, size = list[str](), 0
    for text in texts:
        taken.append(text[: SAMPLE_CHARACTERS - size])
        size += len(taken[-1])
        if size >= SAMPLE_CHARACTERS:
            break
    return "\n\n".join(taken)


class Sentences:
    """Finds sentence borders; trained (or loaded) when first asked, as many corpora have borders enough without.

    Args:
        sample: gives the text to learn from, the same in every shard of a run. See `corpus_sample`.
    """

    def __init__(self, sample: Callable[[], str]) -> None:
        self._sample = sample

    def within(self, text: str, start: int, end: int) -> list[int]:
        """Where sentences begin, ``start <= place <= end``, ascending.

        The text is looked at in fixed cells, so that a place is a border or not whatever stretch is asked for.
        """
        found = set[int]()
        for cell in range(start - start % CELL, end + 1, CELL):
            first, last = max(0, cell - MARGIN), cell + CELL + MARGIN
            shown = text[first:last]
            spans: Iterable[tuple[int, int]] = self._punkt.span_tokenize(shown)
            borders = {first + begin for begin, _ in spans}
            borders |= {first + match.end() for match in _OTHER_STOP.finditer(shown)}
            found |= {place for place in borders if cell <= place < cell + CELL and first < place}
        return sorted(place for place in found if start <= place <= end and place < len(text))

    @cached_property
    def _punkt(self) -> Any:
        punkt = _import_punkt()
        sample = self._sample()
        key = hashlib.sha256(
            f"{importlib.metadata.version('nltk')}\0{sample}".encode("utf-8", "surrogatepass")
        ).hexdigest()[:32]
        path = cache_folder() / "punkt" / f"{key}.json"
        found = _load(path)
        if found is None:
            found = train(sample)
            _save(path, found)
        return punkt.PunktSentenceTokenizer(_parameters(punkt, found))


def train(sample: str) -> dict[str, Any]:
    """What Punkt learns from a text, as JSON knows it: abbreviations, collocations, openings, contexts of words."""
    trainer = _import_punkt().PunktTrainer()
    trainer.train(sample)
    parameters = trainer.get_params()
    return {
        "abbreviations": sorted(parameters.abbrev_types),
        "collocations": sorted(parameters.collocations),
        "starters": sorted(parameters.sent_starters),
        "contexts": dict(sorted(parameters.ortho_context.items())),
    }


def _parameters(punkt: Any, plain: dict[str, Any]) -> Any:
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(plain["abbreviations"])
    parameters.collocations = {(first, second) for first, second in plain["collocations"]}
    parameters.sent_starters = set(plain["starters"])
    parameters.ortho_context.update(plain["contexts"])
    return parameters


def _load(path: Path) -> dict[str, Any] | None:
    """What an earlier run learned; None where there is nothing, or nothing whole: it is learned again."""
    try:
        found = json.loads(path.read_bytes())
        words = [*found["abbreviations"], *found["starters"], *found["contexts"]]
        words += [word for pair in found["collocations"] for word in (pair if len(pair) == 2 else [None])]
        flags = found["contexts"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_whole = all(isinstance(word, str) for word in words) and all(isinstance(flag, int) for flag in flags)
    return found if is_whole else None


def _save(path: Path, found: dict[str, Any]) -> None:
    """Keep what was learned; a folder that cannot be written costs the next run its seconds, nothing else."""
    own = path.with_name(f"{path.stem}.{os.uname().nodename}.{os.getpid()}.json")  # shards may save at the same time
    try:
        with atomic_file(own) as partial:
            partial.write_text(json.dumps(found, ensure_ascii=True), encoding="ascii")
        own.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            own.unlink()


def _import_punkt() -> Any:
    purpose = "sentences are found with nltk, which cannot be imported"
    return import_optional("nltk.tokenize.punkt", purpose, extra="generate")
