"""All documents of a shard on a Ray cluster: the twin of `run`, where documents are tasks of the engines' actors.

This process, the driver, alone writes the journal. A document is a task of one engine as a whole: its text travels
once, all requests about it come together (what an engine with a prefix cache wants), and its work (keys over half a
megabyte a request, filters) is not the driver's. The actor sends answers as they come and the outcome last, so an
answer stands in the journal before an outcome that was built on it.

An actor or its machine may die at any time. Ray starts the actor anew; the documents it had are begun again, on
whichever engines are free, with the answers that the journal holds. Ray itself must not repeat a document: it takes a
task that yields to yield the same again and skips as many items as it had, but answers come in any order.
"""

import asyncio
from collections import Counter

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.journal import Journal, Position
from megatron_longpo.generate.on_ray.ray_actor import answers_of
from megatron_longpo.generate.on_ray.ray_engines import MAX_DEATHS, RayEngines, ray_says
from megatron_longpo.generate.procedure import Outcome
from megatron_longpo.generate.run import Contexts, Work, num_documents, record, without_blocking


async def run_shard_on_ray(contexts: Contexts, engines: RayEngines, journal: Journal, work: Work) -> None:
    """Carry out the procedure for all ``contexts`` that the journal does not hold yet.

    Documents are begun in order, as many at a time as keep the engines busy, and read when there is room for one. An
    engine that comes up late, or anew, joins in.

    Raises:
        UserError: an engine cannot answer or cannot be opened, or engines differ. The answers that had come here
            until then are in the journal.
    """
    try:
        async with asyncio.TaskGroup() as group:
            await _Run(engines, journal, work, group).all(contexts)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _Run:
    """The shard under way; ``group`` ends everything at the first error."""

    def __init__(self, engines: RayEngines, journal: Journal, work: Work, group: asyncio.TaskGroup) -> None:
        self._engines, self._journal, self._work, self._group = engines, journal, work, group
        self._goes_on = bool(journal.answers)
        self._places = _Places()
        self._openings: list[asyncio.Task[None]] = []
        self._documents: set[asyncio.Task[None]] = set()
        self._deaths = Counter[str]()
        """Id of a long context -> engines that died under it."""

    async def all(self, contexts: Contexts) -> None:
        for engine in range(len(self._engines.actors)):
            self._openings.append(self._group.create_task(self._join(engine)))
        async for position, context in without_blocking(contexts):
            if position not in self._journal.done:
                engine = await self._places.take()
                document = self._group.create_task(self._document(engine, position, context))
                self._documents.add(document)
                document.add_done_callback(self._documents.discard)
        while self._documents:
            await asyncio.wait(self._documents)
        for opening in self._openings:
            opening.cancel()  # of engines that did not come up in time

    async def _join(self, engine: int) -> None:
        opened = await self._engines.opened(engine)
        self._places.add(engine, num_documents(opened.num_concurrent, self._work.settings))

    async def _rejoin(self, engine: int) -> None:
        await self._engines.reopened(engine)
        self._places.open(engine)

    async def _document(self, engine: int, position: Position, context: LongContext) -> None:
        """One long context to its outcome in the journal, on one engine after the other if they die under it."""
        begun = self._goes_on
        while True:
            try:
                outcome = await self._outcome(engine, context, begun=begun)
            except self._engines.losses as loss:
                self._count_death(context, loss)
                if self._places.close(engine):
                    self._openings.append(self._group.create_task(self._rejoin(engine)))
            else:
                record(self._journal, position, outcome)
                self._work.observer.finished(outcome)
                self._places.give_back(engine)
                return
            self._places.give_back(engine)
            engine, begun = await self._places.take(), True

    def _count_death(self, context: LongContext, loss: Exception) -> None:
        self._deaths[context.id] += 1
        if self._deaths[context.id] == MAX_DEATHS:
            # Others may have been there each time; the last death has perhaps not been heard of by all of them.
            suspects = sorted(name for name, deaths in self._deaths.items() if deaths >= MAX_DEATHS - 1)
            raise UserError(
                f"{MAX_DEATHS} engines ended one after the other while they worked on {' and '.join(suspects)} "
                f"({ray_says(loss)}); the reason stands in the workers' logs in Ray's session folder"
            ) from loss

    async def _outcome(self, engine: int, context: LongContext, *, begun: bool) -> Outcome:
        """What the document's task sends at last; its answers go into the journal."""
        settings, control_token = self._work.settings, self._work.control_token
        known: dict[str, Completion] = {}
        if begun:
            known = await answers_of(context, settings, control_token, self._journal.answers)
        async for result in self._engines.document(engine, context, settings, control_token, known):
            if isinstance(result, Outcome):
                return result
            key, completion = result
            if key not in self._journal.answers:
                self._journal.add_answer(key, completion)
                self._work.observer.answered(completion)
        raise AssertionError("a document's task ends with its outcome or with an error")


class _Places:
    """Room for documents on the engines that are up."""

    def __init__(self) -> None:
        self._free: dict[int, int] = {}
        """Engine -> documents that it could take besides those it has."""
        self._down: set[int] = set()
        self._changed = asyncio.Event()

    def add(self, engine: int, num_places: int) -> None:
        """An engine is up for the first time."""
        self._free[engine] = num_places
        self._changed.set()

    def close(self, engine: int) -> bool:
        """The engine was lost: nothing is to go there. Whether that was news."""
        is_news = engine not in self._down
        self._down.add(engine)
        return is_news

    def open(self, engine: int) -> None:
        """It is up again."""
        self._down.discard(engine)
        self._changed.set()

    async def take(self) -> int:
        """Wait for room; returns the engine that has most."""
        while not (free := {engine: room for engine, room in self._free.items() if room and engine not in self._down}):
            self._changed.clear()
            await self._changed.wait()
        engine = max(free, key=lambda engine: free[engine])
        self._free[engine] -= 1
        return engine

    def give_back(self, engine: int) -> None:
        """A document has left the engine, done or not."""
        self._free[engine] += 1
        self._changed.set()
