"""Which turns are not fit for training, and why: each filter looks at one turn and has a name that is counted."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_longpo.errors import import_optional
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.settings import FilterName, Settings

LANGUAGE_LETTERS = 60
"""A language is told from at least this many letters; less is let pass."""
LANGUAGE_CERTAINTY = 0.95
_SAMPLE_CHARACTERS = 2000
_WORDS_OF_A_LOOP = 6

_REFUSAL = re.compile(
    r"""^\W*(?:
        (?:i['\u2019]?m|i\s+am|we\s+are)\s+(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid|unable|not\s+able)
        | (?:i|we)\s+apologi[sz]e
        | (?:sorry|unfortunately)\b[^.]{0,80}\b
          (?:can['\u2019]?t|cannot|unable|not\s+able|do(?:es)?\s+not|doesn['\u2019]?t|don['\u2019]?t)
        | (?:i|we)\s+(?:can['\u2019]?t|cannot|can\s+not|won['\u2019]?t|could\s+not|couldn['\u2019]?t)
        | (?:i|we)\s+(?:do\s+not|don['\u2019]?t)\s+have
        | as\s+an?\s+(?:ai|artificial\s+intelligence|language\s+model|assistant)\b
        | (?:the|this)\s+(?:\w+\s+){0,3}(?:text|document|passage|context|material)\s+(?:\w+\s+){0,2}
          (?:does\s+not|doesn['\u2019]?t|do\s+not|don['\u2019]?t)\s+(?:\w+\s+){0,2}(?:contain|provide|mention|say|include|specify|give)
        | there\s+is\s+no\s+(?:mention|information|reference|text|document)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Only what an answer opens with: further on the same words may be quoted or be a point of the answer."""


_BEGIN, _END = (rf"(?:<{slash}(?:think|thinking|thought|seed:think)>|\[{slash}THINK\])" for slash in ("", "/"))
_LEADING_THOUGHTS = re.compile(rf"\s*{_BEGIN}.*?{_END}|(?:(?!{_BEGIN}).)*?{_END}[ \t]*\n", re.IGNORECASE | re.DOTALL)
"""The second form: the chat template opened the thoughts. An end that is quoted within a line is not the model's."""
_THOUGHTS_MARK = re.compile(f"{_BEGIN}|{_END}", re.IGNORECASE)
_BROKEN = re.compile("[\x00\ud800-\udfff\ufffd]")
"""Half of a surrogate pair, NUL, and what decoders put in place of bytes that are no character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A turn that has all its parts and is to be judged."""

    chunk: str
    question: str
    chosen: Completion
    rejected: Completion
    domain: str
    num_short_tokens: int
    """Tokens of the short conversation, prompt and chosen answer."""


def first_fault(turn: Candidate, settings: Settings, control_token: re.Pattern[str] | None) -> FilterName | None:
    """The first filter that drops the turn, in the order of `FILTERS`; None if it is fit.

    Args:
        control_token: matches the tokenizer's control tokens (data/tokenise.py), which `build` refuses in any text.
    """
    answers = (turn.chosen, turn.rejected)
    texts = [answer.text for answer in answers]
    found: dict[FilterName, Callable[[], bool]] = {
        "control tokens": lambda: any(holds_control_token(text, control_token) for text in (turn.question, *texts)),
        "thoughts": lambda: any(_THOUGHTS_MARK.search(text) for text in (turn.question, *texts)),
        "broken characters": lambda: any(holds_broken_character(text) for text in (turn.question, *texts)),
        "cut off": lambda: any(answer.finish == "length" for answer in answers),
        "empty": lambda: any(len(text.strip()) < max(settings.min_answer_characters, 1) for text in texts),
        "refusal": lambda: any(is_refusal(text) for text in texts),
        "repetition": lambda: any(repetition(text) > settings.max_repetition for text in texts),
        "language": lambda: turn.domain != "code" and any(other_language(turn.chunk, text) for text in texts),
        "too similar": lambda: similarity(*texts) > settings.max_similarity,
        "too long": lambda: turn.num_short_tokens >= settings.max_short_tokens,
    }
    for name, drops in found.items():
        if name not in settings.no_filter and drops():
            return name
    if any(answer.num_new_tokens > settings.answer.max_new_tokens for answer in answers):
        return "too long"  # the server knows no limit, and the conversation may not fit the length
    # Also under --no-filter: no pair could be built of them.
    if any(not text.strip() for text in texts):
        return "empty"
    return "too similar" if texts[0].strip() == texts[1].strip() else None


def without_thoughts(text: str) -> str:
    """The answer alone: thoughts that it opens with are removed, as servers do that know the model.

    Thoughts that do not end are left, and dropped as "thoughts".
    """
    found = _LEADING_THOUGHTS.match(text)
    return text[found.end() :].lstrip() if found else text


def holds_broken_character(text: str) -> bool:
    """Whether the text cannot be stored, or holds signs that bytes of it were lost."""
    return _BROKEN.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether the answer opens by saying that there will be none."""
    return _REFUSAL.match(text) is not None


def repetition(text: str) -> float:
    """Share of the sequences of six words that stood in the text before: a loop is near 1, prose near 0."""
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]", text.lower())
    sequences = list(zip(*(words[start:] for start in range(_WORDS_OF_A_LOOP)), strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def similarity(chosen: str, rejected: str) -> float:
    """1 for equal texts, 0 for texts without a common character (normalised edit distance, white space aside)."""
    return _package("rapidfuzz.fuzz", "too similar").ratio(" ".join(chosen.split()), " ".join(rejected.split())) / 100


def other_language(chunk: str, answer: str) -> bool:
    """Whether the answer is, with some certainty, in another language than the chunk."""
    language, certainty = _language(chunk[:_SAMPLE_CHARACTERS])
    other, other_certainty = _language(answer[:_SAMPLE_CHARACTERS])
    return min(certainty, other_certainty) >= LANGUAGE_CERTAINTY and language != other


def holds_control_token(text: str, control_token: re.Pattern[str] | None) -> bool:
    """Whether the text spells out one of the tokenizer's control tokens."""
    return control_token is not None and control_token.search(text) is not None


@functools.lru_cache(maxsize=256)
def _language(text: str) -> tuple[str, float]:
    letters = sum(character.isalpha() for character in text)
    if letters < LANGUAGE_LETTERS:
        return "", 0.0
    language, certainty = _identifier().classify(text)
    return language, float(certainty)


@functools.cache
def _identifier() -> Any:
    langid = _package("py3langid.langid", "language")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _package(module: str, name: FilterName) -> Any:
    purpose, advice = f"the filter {name!r} needs {module.partition('.')[0]}", f", or turn it off: --no-filter {name}"
    return import_optional(module, purpose, extra="generate", advice=advice)
