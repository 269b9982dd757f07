"""What an answer is worth, from 0 to 1, by the rules of each benchmark.

InfiniteBench (arXiv 2402.13718, src/compute_scores.py of its release) is followed to the letter, oddities included,
because only so do scores compare with published ones; docs/evaluate.md lists them. RULER (arXiv 2404.06654,
scripts/eval) looks for the references in the answer.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from megatron_longpo.errors import UserError, import_optional

Rule = Callable[[str, Sequence[str], Sequence[str]], float]
"""(answer, references, options of a multiple choice) -> score from 0 to 1. There is at least one reference."""

LETTERS = "ABCD"
_ANSWER_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
"""Of a multiple choice, in the order in which they are looked for."""
_BLANKED = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CONTROL = re.compile(r"[\x00-\x1f]")


def infinitebench_en_sum(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """ROUGE-Lsum's F, without stemming; a line is a sentence. The best reference counts."""
    return _rouge_scorer().score_multi(list(references), answer)["rougeLsum"].fmeasure


def infinitebench_en_qa(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F1 of the words that answer and reference share, without case, punctuation and articles; the best reference."""
    words = _bare_words(answer)
    return max(_f1(words, _bare_words(reference)) for reference in references)


def infinitebench_en_mc(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Whether the right option was chosen: 1 or 0.

    The first of these that applies says what was chosen: a first character that is one of A to D; the whole answer, if
    it is the right option or its letter; what follows "answer is:", "answer:", "answer is" or "option is"; the first
    word of letters A to D alone.

    Args:
        answer: what the model wrote.
        references: the text of the right option, its letter, or both.
        options: the texts of A to D; needed where the references do not name the letter.
    """
    right = _right_names(references, options)
    answer = answer.strip()
    if not answer:
        return 0.0
    if answer[0] in LETTERS:
        return float(answer[0] in right)
    if answer in right:
        return 1.0
    answer = re.sub(" +", " ", answer.translate(_BLANKED))
    for prefix in _ANSWER_PREFIXES:
        _, found, rest = answer.partition(prefix)
        if found:  # what follows begins after one more character, whatever it is
            return float(bool(rest) and rest[1:].startswith(right))
    chosen = next((word for word in answer.split() if word in LETTERS), "")
    return float(chosen in right)


def ruler_all(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Part of the references that stand in the answer, without case: needles, variables and words."""
    found = _cleaned(answer)
    return sum(reference.lower() in found for reference in references) / len(references)


def ruler_any(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Whether one of the references stands in the answer, without case: questions with several right answers."""
    found = _cleaned(answer)
    return float(any(reference.lower() in found for reference in references))


RULES: dict[str, Rule] = {
    "infinitebench_en_sum": infinitebench_en_sum,
    "infinitebench_en_qa": infinitebench_en_qa,
    "infinitebench_en_mc": infinitebench_en_mc,
    **{f"ruler_niah_single_{number}": ruler_all for number in (1, 2, 3)},
    **{f"ruler_niah_multikey_{number}": ruler_all for number in (1, 2, 3)},
    "ruler_niah_multiquery": ruler_all,
    "ruler_niah_multivalue": ruler_all,
    "ruler_vt": ruler_all,
    "ruler_cwe": ruler_all,
    "ruler_fwe": ruler_all,
    "ruler_qa_squad": ruler_any,
    "ruler_qa_hotpot": ruler_any,
}
"""Task -> its rule."""


@cache
def _rouge_scorer() -> Any:
    scorer = import_optional("rouge_score.rouge_scorer", "summaries are scored by rouge-score", extra="evaluate")
    return scorer.RougeScorer(["rougeLsum"], use_stemmer=False)


def _bare_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: Sequence[str], others: Sequence[str]) -> float:
    num_common = (Counter(words) & Counter(others)).total()
    return 2 * num_common / (len(words) + len(others)) if num_common else 0.0


def _right_names(references: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """Text and letter of the right option."""
    by_text = {text: letter for letter, text in reversed(list(zip(LETTERS, options, strict=False)))}
    by_letter = dict(zip(LETTERS, options, strict=False))
    names = [*references, *(by_text[name] for name in references if name in by_text)]
    if not any(name in tuple(LETTERS) for name in names):
        raise UserError(
            f"{references[0]!r} is none of the options {list(options)}, so its letter is not known; give "
            '"options" with the four texts, or the letter as a second reference'
        )
    return (*names, *(by_letter[name] for name in references if name in by_letter and name not in by_text))


def _cleaned(answer: str) -> str:
    """RULER's own preparation: control characters are line ends."""
    return _CONTROL.sub("\n", answer.strip()).strip().lower()
