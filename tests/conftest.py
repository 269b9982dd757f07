"""How the tests are shared between processes (``make test`` runs them under pytest-xdist)."""

import signal

import pytest

FOLDERS_OF_RANKS = {"distributed", "parity", "integration"}


def pytest_configure() -> None:
    """Let the programs under test hear Ctrl-C also where the tests run in the background.

    A shell without job control, as in CI, starts background commands with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def starts_processes(item: pytest.Item) -> bool:
    """The test is marked so, lies in one of those folders, or its module imports tests/ranks.py's ``run_ranks``."""
    in_folder = bool(FOLDERS_OF_RANKS & set(item.path.parent.parts))
    return bool(item.get_closest_marker("ranks")) or in_folder or hasattr(getattr(item, "module", None), "run_ranks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a module that start processes in one group, which one worker runs one by one.

    They share what the module's fixtures made, and so at most as many of them run together as there are workers: more
    would fight for the cores and run into their time limits.
    """
    for item in items:
        if starts_processes(item):
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-ranks"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker: stop if the group was not heeded, which slows and breaks tests without a word.

    pytest-xdist appends the group to the id that its scheduler sees.
    """
    if not session.config.getoption("loadgroup", default=False):
        return
    stray = [item.nodeid for item in session.items if starts_processes(item) and not item.nodeid.endswith("-ranks")]
    if stray:
        raise pytest.UsageError(f"this pytest-xdist does not group tests under pytest {pytest.__version__}: {stray[0]}")
