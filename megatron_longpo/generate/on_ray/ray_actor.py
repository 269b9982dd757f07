"""An engine on a Ray cluster: an actor that holds the engine, and carries out the procedure for the documents it gets.

It writes nothing. Each answer is sent to the driver when it comes, the document's outcome at last.
"""

import asyncio
import contextlib
import inspect
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_longpo.data.render import Context
from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion, Engine, Request
from megatron_longpo.generate.procedure import Outcome, make_pair, request_key
from megatron_longpo.generate.settings import Settings

OpenEngine = Callable[[], Engine | Awaitable[Engine]]
"""Makes an engine, in the process that is to hold it: for Ray it must be picklable, like a functools.partial of a
function of a module."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What an engine says of itself, see `Engine`."""

    identity: Mapping[str, str]
    context_limits: Mapping[Context, int]
    num_concurrent: int


class EngineActor:
    """The body of the actor; its methods are coroutines, so Ray runs many of them at a time on one event loop."""

    def __init__(self, open_engine: OpenEngine, folder: Path) -> None:
        """Remember how to open the engine: it is done by the first method that is called.

        Not here: Ray gives the caller an error of a method as it was raised, one of the constructor as a text only.

        Args:
            folder: the driver's working directory, so that relative paths mean the same here; Ray's own is that of
                whoever started the cluster. Where there is no such folder, there is nothing that they name either.
        """
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._open_engine = open_engine
        self._opening: asyncio.Task[Engine] | None = None

    async def started(self) -> None:
        """Nothing: an answer means that the process is there."""

    async def opened(self) -> Opened:
        """Open the engine, unless it is open.

        Raises:
            UserError: what opening it raises.
        """
        engine = await self._engine()
        return Opened(dict(engine.identity), dict(engine.context_limits), engine.num_concurrent)

    async def document(
        self,
        context: LongContext,
        settings: Settings,
        control_token: re.Pattern[str] | None,
        known: Mapping[str, Completion],
    ) -> AsyncGenerator[tuple[str, Completion] | Outcome]:
        """The procedure for one long context: yields (request's key, answer) as they come, and the outcome at last.

        An answer is sent before anything that was built on it.

        Args:
            known: request's key -> answer, of those that are not to be asked again; they are not sent either.
        """
        engine = await self._engine()
        answers: asyncio.Queue[tuple[str, Completion] | None] = asyncio.Queue()

        async def ask(request: Request) -> Completion:
            key = request_key(request)
            if key in known:
                return known[key]
            completion = await engine.complete(request)
            answers.put_nowait((key, completion))
            return completion

        outcome = asyncio.create_task(make_pair(context, settings, ask, control_token))
        outcome.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            yield await outcome
        finally:
            outcome.cancel()

    async def aclose(self) -> None:
        """Let go of the model or the connections, if there are any."""
        if self._opening is not None:
            await (await self._opening).aclose()

    async def _engine(self) -> Engine:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await self._opening

    async def _open(self) -> Engine:
        engine = self._open_engine()
        return await engine if inspect.isawaitable(engine) else engine


async def answers_of(
    context: LongContext, settings: Settings, control_token: re.Pattern[str] | None, answers: Mapping[str, Completion]
) -> dict[str, Completion]:
    """Those of a journal's ``answers`` (request's key -> answer) that are about one long context.

    A journal does not say which document an answer belongs to, but the procedure knows: run again, it asks the same
    again. Where there is no answer yet an empty one stands in, which ends that turn and leads to no other question.
    """
    found: dict[str, Completion] = {}

    async def ask(request: Request) -> Completion:
        key = request_key(request)
        if key in answers:
            found[key] = answers[key]
        return answers.get(key, _NONE_YET)

    await make_pair(context, settings, ask, control_token)
    return found


_NONE_YET = Completion(text="", finish="stop", num_prompt_tokens=0, num_new_tokens=0)
