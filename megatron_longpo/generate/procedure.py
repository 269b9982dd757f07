"""One long document to one pair: what is asked of the model, in which order, and what is kept (paper, section 3.3).

For every turn: questions about one chunk, by the model or given, one of which is kept; its *chosen* answer from that
chunk alone, its *rejected* answer from the whole document. Chunks are taken in random order; one that gives no usable
turn is replaced by the next.

All randomness comes from the settings' seed and the document, and every request has a seed of its own. So the
procedure, run again with the answers it got before, asks the same again: that is how a journal resumes it.
"""

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_longpo.data.render import Context
from megatron_longpo.errors import TooLong
from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion, Request, Sampling
from megatron_longpo.generate.filters import (
    Candidate,
    first_fault,
    holds_broken_character,
    holds_control_token,
    without_thoughts,
)
from megatron_longpo.generate.prompts import (
    LEAD_INS,
    ask_for_questions,
    instruction_of,
    parse_questions,
    tells_position,
    user_message,
)
from megatron_longpo.generate.settings import FilterName, Settings

Ask = Callable[[Request], Awaitable[Completion]]
"""Answers a request: an engine's `complete`, with a journal before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one long context gave."""

    pair: dict[str, Any] | None
    """A line of the output (DESIGN section 7); None with fewer than ``min_turns`` usable turns."""
    asked: int
    """Chunks that were asked about."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Filter -> chunks it dropped; the rest became turns."""
    turns: int
    """Usable turns, whether or not there were enough for a pair."""


@dataclass(frozen=True, slots=True)
class _Turn:
    chunk_number: int
    short_context: str
    instruction: str
    chosen: str
    rejected: str


def request_key(request: Request) -> str:
    """Name of a request in the journal: the hash of everything that decides its answer."""
    sampling = request.sampling
    parts = [
        request.messages,
        sampling.temperature,
        sampling.top_p,
        sampling.max_new_tokens,
        request.seed,
        request.context,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


async def make_pair(
    context: LongContext, settings: Settings, ask: Ask, control_token: re.Pattern[str] | None
) -> Outcome:
    """Carry out the procedure for one long context.

    Args:
        ask: where requests go; several are under way at a time.
        control_token: matches the tokenizer's control tokens, which no text of a pair may hold.
    """
    if holds_control_token(context.text, control_token):
        return Outcome(pair=None, asked=0, dropped=Counter({"control tokens": 1}), turns=0)
    work = _Document(context, settings, ask, control_token)
    order = work.shuffled_chunks()
    turns: list[_Turn] = []
    while order and len(turns) < settings.num_turns:
        batch, order = order[: settings.num_turns - len(turns)], order[settings.num_turns - len(turns) :]
        found = await asyncio.gather(*(work.turn(chunk_number) for chunk_number in batch))
        turns += [turn for turn in found if turn is not None]
    asked = len(context.askable()) - len(order)
    pair = work.pair(turns) if len(turns) >= settings.min_turns else None
    return Outcome(pair=pair, asked=asked, dropped=work.dropped, turns=len(turns))


class _Document:
    """The long context under way."""

    def __init__(
        self, context: LongContext, settings: Settings, ask: Ask, control_token: re.Pattern[str] | None
    ) -> None:
        self._context, self._settings, self._ask, self._control_token = context, settings, ask, control_token
        self._digest = hashlib.sha256(context.text.encode()).hexdigest()
        self.dropped = Counter[str]()

    def shuffled_chunks(self) -> list[int]:
        order = self._context.askable()
        self._random("order").shuffle(order)
        return order

    async def turn(self, number: int) -> _Turn | None:
        """The turn about chunk ``number``, or None (and counted) if it is not usable."""
        chunk = self._context.chunk_text(number)
        if self._context.questions is not None:
            question = instruction = self._random(f"{number} given").choice(self._context.questions[number])
        else:
            question, fault = await self._question(chunk, number)
            if question is None:
                return self._drop(fault)
            instruction = instruction_of(question, self._random(f"{number} lead-in").choice(LEAD_INS))
        sampling = self._settings.answer
        short, long = user_message(chunk, instruction), user_message(self._context.text.strip(), instruction)
        try:
            chosen, rejected = await asyncio.gather(
                self._complete(short, sampling, f"{number} chosen", "short"),
                self._complete(long, sampling, f"{number} rejected", "long"),
            )
        except TooLong:  # a long question in a script of many tokens: there is room for usual ones
            return self._drop("too long")
        candidate = Candidate(
            chunk=chunk,
            question=question,
            chosen=chosen,
            rejected=rejected,
            domain=self._context.domain,
            num_short_tokens=chosen.num_prompt_tokens + chosen.num_new_tokens,
        )
        if fault := first_fault(candidate, self._settings, self._control_token):
            return self._drop(fault)
        return _Turn(number, chunk, instruction, chosen.text.strip(), rejected.text.strip())

    async def _question(self, chunk: str, number: int) -> tuple[str | None, FilterName]:
        """One of a well-formed list of questions; or None and what was wrong with the last list."""
        fault: FilterName = "malformed questions"
        for attempt in range(self._settings.question_attempts):
            prompt = ask_for_questions(chunk, self._context.domain, self._settings.num_questions)
            purpose = f"{number} questions {attempt}"
            answer = await self._complete(prompt, self._settings.question, purpose, "short")
            questions = parse_questions(answer.text, self._settings.num_questions, answer.finish == "length")
            if questions is None or holds_broken_character(answer.text):
                fault = "malformed questions"
                continue
            usable = [text for text in questions if "position" in self._settings.no_filter or not tells_position(text)]
            if usable:
                return self._random(f"{purpose} choice").choice(usable), fault
            fault = "position"
        return None, fault

    async def _complete(self, message: str, sampling: Sampling, purpose: str, context: Context) -> Completion:
        seed = self._random(purpose).randrange(2**31)
        messages = ({"role": "user", "content": message},)
        answer = await self._ask(Request(messages=messages, sampling=sampling, seed=seed, context=context))
        return replace(answer, text=without_thoughts(answer.text))

    def _drop(self, fault: FilterName) -> None:
        self.dropped[fault] += 1

    def _random(self, purpose: str) -> random.Random:
        """Independent of the order in which answers come."""
        return random.Random(f"{self._settings.seed} {self._context.id} {self._digest} {purpose}")

    def pair(self, turns: list[_Turn]) -> dict[str, Any]:
        fields = ("short_context", "instruction", "chosen", "rejected")
        return {
            "id": self._context.id,
            "context": self._context.text.strip(),
            "turns": [{name: getattr(turn, name) for name in fields} for turn in turns],
            "meta": {
                "domain": self._context.domain,
                "num_context_tokens": self._context.num_tokens,
                "num_chunks": len(self._context.chunks),
                "evidence_chunks": [turn.chunk_number for turn in turns],
                "seed": self._settings.seed,
            },
        }
