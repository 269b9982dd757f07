"""Lines to rendered pairs, in order, in this process or on several: what comes out does not depend on how many.

At most two lines a worker wait at any time, so memory stays bounded whatever the size of the files. Workers ignore
Ctrl-C (the parent stops them) and end with their parent, however that ends.
"""

import functools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.data.pair import parse_pair
from megatron_longpo.data.render import Overlong, RenderedPair, render_pair
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import TooLong, UserError
from megatron_longpo.workers import start_worker


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderSettings:
    """What every pair is rendered with; see `render.render_pair`."""

    tokenizer: Path
    chat_template: str | None
    """Jinja source that takes the place of the folder's template."""
    max_length: int
    overlong: Overlong


@dataclass(frozen=True, slots=True, eq=False)
class RenderedLine:
    """What became of one line."""

    where: str
    """``FILE:LINE``"""
    num_bytes: int
    id: str
    meta: Mapping[str, Any]
    rendered: RenderedPair | None
    """None if the pair is too long and such pairs are skipped."""


def render_lines(
    lines: Iterable[tuple[str, bytes]],
    settings: RenderSettings,
    num_workers: int,
    on_bad: Callable[[UserError], None] | None = None,
) -> Generator[RenderedLine]:
    """Parse, validate and render ``(FILE:LINE, line)`` one by one; close the generator to stop the workers.

    Args:
        on_bad: called with what is wrong with a line, in the place of raising it, unless the pair is too long.

    Raises:
        UserError: of the first bad line in the order of the input, with its FILE:LINE; or a worker was killed.
    """
    if num_workers == 1:
        results = (functools.partial(_render_line, settings, where, line) for where, line in lines)
    else:
        results = _results_of_workers(lines, settings, num_workers)
    with closing(results):
        for result in results:
            try:
                rendered = result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely for lack of memory; give fewer --workers"
                ) from error
            except UserError as error:
                if on_bad is None or isinstance(error, TooLong):
                    raise
                on_bad(error)
                continue
            yield rendered


def _results_of_workers(
    lines: Iterable[tuple[str, bytes]], settings: RenderSettings, num_workers: int
) -> Generator[Callable[[], RenderedLine]]:
    # Forked from a process without threads that has the slow imports behind it: safer than fork, faster than spawn.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.auto.tokenization_auto"])
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker)
    waiting: deque[Future[RenderedLine]] = deque()
    try:
        for where, line in lines:
            waiting.append(pool.submit(_render_line, settings, where, line))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_tokenizer = functools.cache(load_tokenizer)


def _render_line(settings: RenderSettings, where: str, line: bytes) -> RenderedLine:
    pair = parse_pair(line, where)
    try:
        tokenizer = _tokenizer(settings.tokenizer, settings.chat_template)
        rendered = render_pair(pair, tokenizer, settings.max_length, settings.overlong)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    return RenderedLine(where, len(line), pair.id, pair.meta, rendered)
