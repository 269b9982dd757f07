"""Work that hands over where it would wait for other ranks, so that one piece computes while another's data travel.

On CUDA a collective runs on a stream of NCCL's own from the moment it is started, and waiting for it lets only what is
computed afterwards wait. So what is computed between the two, by whatever task, is computed beside it.

Every rank must run the same tasks in the same order: then all start the same collectives in the same order.
"""

from collections.abc import Generator

type Task[T] = Generator[None, None, T]
"""Yields between the start of a communication and the wait for it, any number of times, and returns its result."""


def together[T](*tasks: Task[T]) -> Task[list[T]]:
    """Run tasks in turn, each as far as it comes without waiting, and return their results in their order."""
    results: dict[int, T] = {}
    while True:
        for place, task in enumerate(tasks):
            if place not in results:
                try:
                    next(task)
                except StopIteration as end:
                    results[place] = end.value
        if len(results) == len(tasks):
            return [results[place] for place in range(len(tasks))]
        yield


def run[T](task: Task[T]) -> T:
    """Run a task to its end."""
    while True:
        try:
            next(task)
        except StopIteration as end:
            return end.value
