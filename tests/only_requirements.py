"""pytest where only the package's own requirements, pytest and pytest-timeout can be imported: no extra is there.

    python -m tests.only_requirements tests/gpu --collect-only -q

So a GPU machine with a torch of its own, and no more than that, is tried on any machine.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires
from pathlib import Path
from typing import Any

PLUGINS = ("pytest", "pytest-timeout")


class _Without:
    """A finder of modules that does not find those of ``hidden`` top-level packages."""

    def __init__(self, finder: Any, hidden: frozenset[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def own_requirements() -> list[str]:
    """Those of setup.py, without its extras."""
    source = (Path(__file__).resolve().parents[1] / "setup.py").read_text(encoding="utf-8")
    lists = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in lists if getattr(node.targets[0], "id", "") == "REQUIREMENTS")


def with_theirs(requirements: list[str]) -> set[str]:
    """Names of these distributions and of all that they require here, normalised."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        name = normalised(re.split(r"[^\w.-]", waiting.pop())[0])
        if name not in found:
            found.add(name)
            waiting += [text for text in _requires(name) if "extra ==" not in text]
    return found


def hidden_modules() -> frozenset[str]:
    """Top-level modules that are installed here and belong to no distribution of the requirements."""
    allowed = with_theirs([*own_requirements(), *PLUGINS]) | {"megatron-longpo"}
    vendored = {path.name for path in Path(str(distribution("setuptools").locate_file("setuptools/_vendor"))).iterdir()}
    owners = packages_distributions().items()
    foreign = frozenset(module for module, of in owners if not allowed & {normalised(one) for one in of})
    return foreign - vendored  # torch imports setuptools, which brings its own copies


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requires(name: str) -> Iterator[str]:
    try:
        yield from requires(name) or ()
    except PackageNotFoundError:  # for another platform or Python
        return


if __name__ == "__main__":
    hidden = hidden_modules()
    sys.meta_path[:] = [_Without(finder, hidden) for finder in sys.meta_path]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    sys.exit(pytest.main(["-p", "pytest_timeout", "-p", "no:cacheprovider", *sys.argv[1:]]))
