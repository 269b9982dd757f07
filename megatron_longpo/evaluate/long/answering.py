"""One cell of a long-context task: every prompt is asked, every answer scored and kept at once, then the cell written.

The answers lie in a journal until the cell is whole, so a run that was killed asks no prompt twice, but for those that
were in flight. Whoever has the journal open makes the cell: other processes leave it alone.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.answers import score_of
from megatron_longpo.evaluate.cells import Cell, Sample
from megatron_longpo.evaluate.long.prompts import Prompt, cut_middle
from megatron_longpo.evaluate.rules import RULES
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.generate.engine import Engine
from megatron_longpo.generate.filters import without_thoughts
from megatron_longpo.generate.run import for_all
from megatron_longpo.journal import Journal, journal_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Observer(Protocol):
    """Is told how a cell goes on."""

    def answered(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """A prompt was answered, now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A line of the journal."""

    id: str
    prompt_sha256: str
    """Of the whole prompt, before its middle was left out."""
    answer: str
    score: float
    length: int
    """Tokens of prompt and room for the answer."""
    is_cut: bool
    prompt_tokens: int
    new_tokens: int
    seconds: float
    """Since the answer before it."""


@contextmanager
def unfinished_cell(wanted: Wanted, output: Path) -> Generator[Journal]:
    """The journal of a cell that this process makes, as long as the context lasts; it goes when the cell is there.

    Raises:
        InUse: another process makes it.
        UserError: the journal is damaged.
    """
    path = wanted.unfinished(output)
    with Journal(path, {"cell": wanted.key}) as journal:
        yield journal
        if wanted.path(output).exists():
            path.unlink()


async def answer_cell(
    wanted: Wanted,
    prompts: Iterable[Prompt],
    engine: Engine,
    tokenizer: "PreTrainedTokenizerFast",
    journal: Journal,
    observer: Observer,
) -> Cell:
    """Ask all prompts that the journal has no answer to.

    Args:
        prompts: of the whole cell, in order.
        journal: from `unfinished_cell`.

    Raises:
        UserError: the engine cannot answer. What was answered until then is in the journal.
    """
    done = _answers(journal)
    order: list[str] = []
    last_s = time.monotonic()
    if wanted.max_length > engine.context_limits["long"]:
        raise UserError(
            f"{wanted.title}: needs a context of {wanted.max_length:,} tokens, and the model has "
            f"{engine.context_limits['long']:,}; serve it with more, or say with --context-limit what it has"
        )

    def missing() -> Iterator[tuple[Prompt, Prompt]]:
        """The prompts that have no answer, whole and as they are asked."""
        for prompt in prompts:
            order.append(prompt.id)
            known = done.get(prompt.id)
            if known is None or known.prompt_sha256 != prompt.sha256:
                yield prompt, cut_middle(tokenizer, prompt, wanted.max_length)

    async def ask(found: tuple[Prompt, Prompt]) -> None:
        nonlocal last_s
        whole, asked = found
        completion = await engine.complete(asked.request())
        text, now_s = without_thoughts(completion.text), time.monotonic()
        answered = Answered(
            id=whole.id,
            prompt_sha256=whole.sha256,
            answer=text,
            score=RULES[wanted.task](text, whole.references, whole.options),
            length=asked.length,
            is_cut=asked.text != whole.text,
            prompt_tokens=completion.num_prompt_tokens,
            new_tokens=completion.num_new_tokens,
            seconds=now_s - last_s,
        )
        last_s = now_s
        journal.append({"kind": "answer", **asdict(answered)})
        done[whole.id] = answered
        observer.answered(completion.num_prompt_tokens, completion.num_new_tokens)

    await for_all(missing(), ask, engine.num_concurrent)
    if not order:
        raise UserError(f"{wanted.title}: there is no prompt")
    return _cell(wanted, [done[one] for one in order])


def answered_tokens(journal: Journal) -> tuple[int, int]:
    """How many prompts a journal has answers to, and the tokens of both."""
    known = _answers(journal).values()
    return len(known), sum(one.prompt_tokens + one.new_tokens for one in known)


def _answers(journal: Journal) -> dict[str, Answered]:
    found: dict[str, Answered] = {}
    for _, _, line in journal_lines(journal.path):
        if line.pop("kind") == "answer":
            found[line["id"]] = Answered(**line)
    return found


def _cell(wanted: Wanted, answers: list[Answered]) -> Cell:
    total = score_of([one.score for one in answers])
    return Cell(
        **wanted.about(),
        score=total.score,
        standard_error=total.standard_error,
        num=total.num,
        num_truncated=sum(one.is_cut for one in answers),
        real_length=fmean(one.length for one in answers),
        seconds=sum(one.seconds for one in answers),
        prompt_tokens=sum(one.prompt_tokens for one in answers),
        new_tokens=sum(one.new_tokens for one in answers),
        samples=tuple(
            Sample(id=one.id, prompt_sha256=one.prompt_sha256, answer=one.answer, score=one.score) for one in answers
        ),
    )
