"""The three suites: which tasks they hold, and which columns the paper's tables make of them (arXiv 2502.13922)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a suite's table: the mean over its tasks."""

    name: str
    tasks: tuple[str, ...]
    about: str
    """What the tasks ask for, in a line for a reader who does not know them."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite and its table."""

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    """The last one is the mean over all tasks of the suite."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All its tasks, in the order of the columns."""
        return self.columns[-1].tasks


_NIAH = (
    *(f"ruler_niah_single_{number}" for number in (1, 2, 3)),
    *(f"ruler_niah_multikey_{number}" for number in (1, 2, 3)),
    "ruler_niah_multiquery",
    "ruler_niah_multivalue",
)
_AGG = ("ruler_cwe", "ruler_fwe")
_QA = ("ruler_qa_squad", "ruler_qa_hotpot")
_EN = ("infinitebench_en_sum", "infinitebench_en_qa", "infinitebench_en_mc")
_SHORT = ("mmlu", "arc_challenge", "hellaswag", "winogrande")

RULER = Suite(
    "ruler",
    "RULER",
    "Made-up tasks whose prompts fill a given number of tokens (arXiv 2404.06654); a score is the part of what was "
    "asked for that stands in the answer.",
    (
        Column("NIAH", _NIAH, "needles in a haystack: find facts that were hidden in a long text (8 tasks)"),
        Column("VT", ("ruler_vt",), "variable tracking: follow assignments (X1 = 7, X2 = X1, ...) through a long text"),
        Column("AGG", _AGG, "aggregation: name the most common words of a long list (2 tasks)"),
        Column("QA", _QA, "answer a question on one of many paragraphs (SQuAD, HotpotQA)"),
        Column("AVG", (*_NIAH, "ruler_vt", *_AGG, *_QA), "mean over the 13 tasks"),
    ),
)
INFINITEBENCH = Suite(
    "infinitebench",
    "InfiniteBench",
    "Whole novels with their names changed (arXiv 2402.13718).",
    (
        Column("En.Sum", _EN[:1], "sum up the novel (ROUGE-Lsum)"),
        Column("En.QA", _EN[1:2], "answer a question on it in a few words (F1 of the words)"),
        Column("En.MC", _EN[2:], "choose one of four answers to a question on it (percent right)"),
        Column("AVG.", _EN, "mean of the three"),
    ),
)
SHORT = Suite(
    "short",
    "Short context",
    "Usual tasks of a few hundred tokens: whether anything was lost there; the right option must be the likeliest.",
    (
        Column("MMLU", _SHORT[:1], "exam questions from 57 subjects, 5 worked examples"),
        Column("ARC-C", _SHORT[1:2], "science questions for schools, 25 worked examples"),
        Column("Hellaswag", _SHORT[2:3], "how an everyday scene goes on, 10 worked examples"),
        Column("Winogrande", _SHORT[3:], "whom a pronoun means, 5 worked examples"),
        Column("Avg", _SHORT, "mean of the four"),
    ),
)
SUITES = {suite.name: suite for suite in (RULER, INFINITEBENCH, SHORT)}
"""In the order of the report."""
