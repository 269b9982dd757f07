"""What a thread makes while the one before it is used."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


def made_ahead[T](makes: Iterable[Callable[[], T]]) -> Generator[T]:
    """Call one after the other, in a thread, and yield what each gives, in their order.

    The next one is made while the caller uses the one that it was given, and no more: two are in memory. Close the
    generator to stop.

    Raises:
        Whatever a call raises, in its turn.
    """
    with ThreadPoolExecutor(1) as thread:
        made: Future[T] | None = None
        for make in makes:
            made, before = thread.submit(make), made
            if before is not None:
                yield before.result()
                before = None  # the caller's alone, or it would be kept beside the next two
        if made is not None:
            yield made.result()
