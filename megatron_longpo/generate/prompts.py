"""The words put to the model: asking for questions, and leading in an answer."""

import re

ASK = (
    "{text}\n\n"
    "Write {count} different questions about the {kind} above. Each one should need the whole of it to be "
    "answered well: ask about causes, purposes, comparisons, developments or how parts fit together, not "
    "about a single word or date. "
    "Each must be clear to somebody who does not know where the answer stands. "
    "Give one question a line, numbered from 1 to {count}, and write nothing else."
)
KINDS = {"prose": "text", "markdown": "document", "latex": "paper", "code": "source code"}
"""How a domain is called in the prompt."""

LEAD_INS = (
    "{question}",
    "Answer this question: {question}",
    "Please answer the following question. {question}",
    "I have a question about this. {question}",
    "Having read all of it, tell me: {question}",
    "Use what you have just read to answer. {question}",
    "Going by the material above: {question}",
    "My question is this: {question}",
    "With everything above in mind, {question}",
    "Here is what I would like to know. {question}",
    "Consider the material above and answer: {question}",
    "Help me to understand something. {question}",
    "Think about what is written above. {question}",
    "Answer from the material given. {question}",
    "After reading this I wonder: {question}",
    "Could you answer this for me? {question}",
    "Give a careful answer to the question: {question}",
    "Explain, on the basis of the above: {question}",
    "Let me ask you something about it. {question}",
    "A question on what you were given: {question}",
)
"""Varied, so that a policy does not learn one phrase; none says how long the material is or where to look in it."""

_ITEM = re.compile(r"^\s*(?:\*\*)?(?:Question\s*)?(\d{1,2})\s*[.):]\s*(?:\*\*)?\s*(\S.*?)\s*$", re.IGNORECASE)
_MIN_WORDS, _MAX_CHARACTERS = 4, 600

_POSITION = re.compile(
    r"""\b(?:
        (?:first|second|third|fourth|last|final|previous|next|following|preceding|opening|closing|above|below|this|given)
        \s+(?:few\s+|two\s+|three\s+)?(?:paragraphs?|sections?|sentences?|chapters?|chunks?|excerpts?|passages?|pages?|lines?|parts?)
        | (?:chunk|excerpt|passage)s?
        | (?:beginning|start|end|middle|half)\s+of\s+the\s+(?:text|document|story|paper|code|article|book)
        | (?:paragraph|section|page|line)\s+\d+
        | according\s+to\s+the\s+(?:section|sentence)
        | (?:the|these|those|both)\s+(?:\w+\s+)?paragraphs?
        | (?:purpose|point|theme|topic|subject|message|idea|title|summary)\s+of\s+the\s+(?:\w+\s+)?(?:text|document)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def ask_for_questions(text: str, domain: str, count: int) -> str:
    """The user's message that asks for ``count`` questions about a chunk."""
    return ASK.format(text=text.strip(), kind=KINDS[domain], count=count)


def parse_questions(answer: str, count: int, is_cut: bool) -> list[str] | None:
    """The questions of a well-formed list, or None.

    Well-formed: lines numbered 1 to ``count``, each a different question of some length. Text before the list and after
    it is let pass; a list whose last question may be cut off (``is_cut``: the answer ended at its limit) is not.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    found = [(index, match) for index, line in enumerate(lines) if (match := _ITEM.match(line))]
    if [int(match[1]) for _, match in found[:count]] != list(range(1, count + 1)):
        return None
    if is_cut and found[count - 1][0] == len(lines) - 1:
        return None
    questions = [match[2].strip().strip("*").strip() for _, match in found[:count]]
    is_distinct = len({normalised(question) for question in questions}) == count
    return questions if is_distinct and all(_is_question(question) for question in questions) else None


def tells_position(question: str) -> bool:
    """Whether it speaks of the chunk as one: in the whole document those words point nowhere, or to the answer."""
    return _POSITION.search(question) is not None


def instruction_of(question: str, lead_in: str) -> str:
    """The instruction of a turn: the question after one of `LEAD_INS`."""
    return lead_in.format(question=question)


def normalised(text: str) -> str:
    """The text for comparing: lower case, words only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def user_message(context: str, instruction: str) -> str:
    """What opens a conversation, short or long (DESIGN section 7: context, blank line, instruction)."""
    return f"{context}\n\n{instruction}"


def _is_question(text: str) -> bool:
    long_enough = len(text.split()) >= _MIN_WORDS or (not text.isascii() and len(text) >= _MIN_WORDS)
    return long_enough and len(text) <= _MAX_CHARACTERS and text.endswith(_ENDS)


_ENDS = ("?", "\uff1f", ".", "\u061f")
