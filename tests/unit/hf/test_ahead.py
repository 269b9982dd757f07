"""Values in their order, one made ahead and no more, and whatever is raised, in its turn."""

import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest

from megatron_longpo.hf.ahead import made_ahead


class Value:
    """Can be referred to weakly."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_in_order() -> None:
    assert list(made_ahead(partial(int, number) for number in range(5))) == [0, 1, 2, 3, 4]
    assert list(made_ahead(())) == []


def test_one_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(number: int) -> int:
        made[number].set()
        return number

    for number in made_ahead(partial(make, number) for number in range(4)):
        if number < 3:
            assert made[number + 1].wait(10), number
        assert not any(event.is_set() for event in made[number + 2 :]), number


def test_no_more_than_two_are_in_memory() -> None:
    alive: list[weakref.ref[Value]] = []

    def make(number: int) -> Value:
        value = Value(number)
        alive.append(weakref.ref(value))
        return value

    for value in made_ahead(partial(make, number) for number in range(6)):
        assert sum(one() is not None for one in alive) <= 2, value.number
        del value


def test_an_error_comes_in_its_turn() -> None:
    def fail() -> int:
        raise OSError("full")

    makes: list[Callable[[], int]] = [lambda: 1, fail, lambda: 3]
    with closing(made_ahead(makes)) as values:
        assert next(values) == 1
        with pytest.raises(OSError, match="full"):
            next(values)


def test_closing_makes_no_more() -> None:
    made: list[int] = []
    values = made_ahead(partial(made.append, number) for number in range(100))
    next(values)
    values.close()
    assert len(made) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
