"""InfiniteBench's three English sets on novels (arXiv 2402.13718): what is asked, and how long an answer may be.

The prompts are the benchmark's own for chat models (its release, MIT license: src/prompt.py, gpt4_templates), and so is
the room for answers (src/eval_utils.py), because only so do scores compare with published ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.long.prompts import Prompt
from megatron_longpo.evaluate.mirror import Mirror

DEFAULT_LIMIT = 131072
"""Tokens that a novel is cut to, as the release has it for models of 128K."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NovelTask:
    """One of the three sets."""

    file: str
    num: int
    """Questions of the whole set."""
    prompt: str
    max_new_tokens: int


NOVEL_TASKS = {
    "infinitebench_en_sum": NovelTask(
        file="longbook_sum_eng.jsonl",
        num=103,
        prompt="Summarize the following book.\n\n{context}",
        max_new_tokens=1200,
    ),
    "infinitebench_en_qa": NovelTask(
        file="longbook_qa_eng.jsonl",
        num=351,
        prompt="Read the book below and answer a question.\n\n{context}\n\nQuestion: {question}\n\nBe very concise.",
        max_new_tokens=40,
    ),
    "infinitebench_en_mc": NovelTask(
        file="longbook_choice_eng.jsonl",
        num=229,
        prompt="Read the book and answer the question.\n\n{context}\n\nQuestion: {question}\n\nOnly one of the "
        "following options is correct, tell me the answer using one single letter (A, B, C, or D). Don't say anything "
        "else.\nA. {A}\nB. {B}\nC. {C}\nD. {D}",
        max_new_tokens=40,
    ),
}


def novel_prompts(mirror: Mirror, name: str) -> Iterator[Prompt]:
    """Yield the questions of a set, whole: nothing is cut yet.

    Args:
        name: one of `NOVEL_TASKS`.

    Raises:
        UserError: the mirror lacks InfiniteBench; a line is no question of it, with file and line.
    """
    task = NOVEL_TASKS[name]
    path = mirror.path_of("infinitebench") / task.file
    for number, (where, fields) in enumerate(strict_json.read_lines(path, "bring infinitebench again")):
        try:
            yield _prompt(task, number, fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: no question of InfiniteBench ({error!r}); bring infinitebench again") from error


def _prompt(task: NovelTask, number: int, fields: dict[str, Any]) -> Prompt:
    options = tuple(fields["options"])
    answer = fields["answer"]
    words = {"context": fields["context"], "question": fields["input"], **dict(zip("ABCD", options, strict=False))}
    return Prompt(
        id=str(number),
        text=task.prompt.format(**words),
        references=(answer,) if isinstance(answer, str) else tuple(answer),
        options=options,
        max_new_tokens=task.max_new_tokens,
    )
