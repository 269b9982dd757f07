"""All documents of a shard through the procedure, several at a time, every answer remembered before it is used."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion, Engine, Request
from megatron_longpo.generate.journal import Journal, Position
from megatron_longpo.generate.procedure import Ask, Outcome, make_pair, request_key
from megatron_longpo.generate.settings import Settings

Contexts = Iterator[tuple[Position, LongContext]]


class Observer(Protocol):
    """Is told how the work goes on: the live display, or a counter of a test."""

    def answered(self, completion: Completion) -> None:
        """A request was answered by the engine, now."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """A long context is done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every document of a run is done with."""

    settings: Settings
    control_token: re.Pattern[str] | None
    """Matches the tokenizer's control tokens."""
    observer: Observer


async def run_shard(contexts: Contexts, engine: Engine, journal: Journal, work: Work) -> None:
    """Carry out the procedure for all ``contexts`` that the journal does not hold yet.

    Documents are begun in order, and so many at a time that the engine always has requests waiting; all requests about
    one document come together, which is what an engine with a prefix cache wants.

    Raises:
        UserError: the engine cannot answer. What was answered until then is in the journal.
    """
    ask = remembered(engine.complete, journal, work.observer)

    async def one(position: Position, context: LongContext) -> None:
        outcome = await make_pair(context, work.settings, ask, work.control_token)
        record(journal, position, outcome)
        work.observer.finished(outcome)

    missing = (found for found in contexts if found[0] not in journal.done)
    await for_all(missing, lambda found: one(*found), num_documents(engine.num_concurrent, work.settings))


async def for_all[T](items: Iterator[T], do: Callable[[T], Coroutine[Any, Any, None]], at_a_time: int) -> None:
    """Do something with every item, ``at_a_time`` of them; begun in order.

    Raises:
        Exception: what ``items`` or the first failing ``do`` raised; the others are cancelled.
    """
    running: set[asyncio.Task[None]] = set()
    try:
        async for item in without_blocking(items):
            running.add(asyncio.create_task(do(item)))
            if len(running) >= at_a_time:
                running = await _some_done(running)
        while running:
            running = await _some_done(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def num_documents(num_concurrent: int, settings: Settings) -> int:
    """Documents at a time that keep ``num_concurrent`` requests in flight: a document has one a turn, or two."""
    return -(-num_concurrent // settings.num_turns) + 1


def remembered(complete: Ask, journal: Journal, observer: Observer) -> Ask:
    """``complete`` with the journal before it: what was answered once is not asked again."""

    async def ask(request: Request) -> Completion:
        key = request_key(request)
        if key not in journal.answers:
            completion = await complete(request)
            journal.add_answer(key, completion)
            observer.answered(completion)
        return journal.answers[key]

    return ask


def record(journal: Journal, position: Position, outcome: Outcome) -> None:
    """Remember that a document is done."""
    journal.add_document(
        position,
        {"pair": outcome.pair, "asked": outcome.asked, "dropped": dict(outcome.dropped), "turns": outcome.turns},
    )


async def _some_done(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, running_on = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # raises what it raised
    return running_on


async def without_blocking[T](items: Iterator[T]) -> AsyncIterator[T]:
    """The items, none of which is None. To make one may tokenise a book: in a thread, so that answers are handled."""
    while (found := await asyncio.to_thread(next, items, None)) is not None:
        yield found
